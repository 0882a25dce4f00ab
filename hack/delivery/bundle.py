"""`make bundle`: one archive with everything that a Docker host needs, in `dist/`.

magic-toolbox-host-VERSION/{install.sh, *.service, requirements.txt, wheels/, own.txt, own/, python}
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from delivery import wheels
from localstack.kubernetes import REPOSITORY
from localstack.progress import SetupError, say

SOURCE = REPOSITORY / "deploy" / "host"


def name() -> str:
    """The archive's name without its ending, and the folder in it."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return f"magic-toolbox-host-{project['version']}"


def assemble(into: Path) -> None:
    """Fills a folder with what the archive holds."""
    for path in sorted(SOURCE.iterdir()):
        shutil.copy2(path, into / path.name)
    wheels.assemble("dtma", into)
    # What wheels/ fits; install.sh compares.
    (into / "python").write_text(f"{wheels.PYTHON} {platform.machine()}\n")


def write(folder: Path) -> Path:
    """Writes the archive into `folder`; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{name()}.tar.gz"
    with tempfile.TemporaryDirectory(prefix="magic-toolbox-bundle-") as temporary:
        inside = Path(temporary) / name()
        inside.mkdir()
        assemble(inside)
        with tarfile.open(archive, "w:gz") as out:
            out.add(inside, arcname=name())
    return archive


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the archive and says where it is."""
    parser = argparse.ArgumentParser(prog="make bundle", description="The archive a Docker host is installed from.")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "dist")
    given = parser.parse_args(arguments)
    try:
        archive = write(given.folder)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    say(f"{archive} ({archive.stat().st_size // 1_000_000} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
