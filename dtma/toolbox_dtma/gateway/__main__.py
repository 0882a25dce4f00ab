"""`python -m toolbox_dtma.gateway --config FILE`: the supervisor and its workers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from toolbox_dtma.gateway.supervisor import main


def run() -> int:
    """Parse the command line and run until told to stop. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="toolbox_dtma.gateway", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="gateway.json, as `toolbox-dtma init` wrote it")
    parser.add_argument("--check", action="store_true", help="only say what is wrong with settings and certificate")
    options = parser.parse_args()
    return main(options.config, check_only=options.check)


if __name__ == "__main__":
    sys.exit(run())
