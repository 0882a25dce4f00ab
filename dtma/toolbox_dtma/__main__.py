"""`toolbox-dtma`: init, renew, serve and gateway.

Each command imports only what it needs: the gateway's process must never load what talks to Docker.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = _parser().parse_args(argv)
    _configure_logging()
    match arguments.command:
        case "init":
            return _init(arguments)
        case "renew":
            return _renew(arguments.state_dir, force=arguments.force)
        case "serve":
            return _serve(arguments.state_dir)
        case _:
            return _gateway(arguments.config, check_only=arguments.check)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="toolbox-dtma", description="Droplet Tool Management Agent")
    commands = parser.add_subparsers(dest="command", required=True)

    init = commands.add_parser("init", help="make identity, keys and certificates; print the YAML to apply")
    init.add_argument("--state-dir", type=Path, required=True, help="private folder of DTMA (0700)")
    init.add_argument("--gateway-dir", type=Path, required=True, help="the gateway's settings and certificate")
    init.add_argument(
        "--runtime-dir", type=Path, default=Path("/run/magic-toolbox"), help="folder of the gateway socket"
    )
    init.add_argument("--address", action="append", required=True, help="IP or DNS name; the first is advertised")
    init.add_argument("--management-port", type=int, default=30000)
    init.add_argument("--gateway-port", type=int, default=30443)
    init.add_argument("--gateway-user", required=True, help="user that runs the gateway, not root: a name or a number")
    init.add_argument("--name", required=True, help="name of the Toolbox")
    init.add_argument("--namespace", default="mcp-system", help="namespace of the Toolbox")
    init.add_argument("--gateway-workers", type=int, default=2)
    init.add_argument("--bind", help="address to listen on; all by default")
    init.add_argument("--docker-url", help="Docker Engine API, if not the usual socket")

    renew = commands.add_parser("renew", help="new server certificates of the host's own authority, if they end soon")
    renew.add_argument("--state-dir", type=Path, required=True)
    renew.add_argument("--force", action="store_true", help="also if they do not end soon")

    serve = commands.add_parser("serve", help="run DTMA")
    serve.add_argument("--state-dir", type=Path, required=True)

    gateway = commands.add_parser("gateway", help="run the gateway")
    gateway.add_argument("--config", type=Path, required=True, help="gateway.json, as init wrote it")
    gateway.add_argument("--check", action="store_true", help="only say what is wrong with settings and certificate")
    return parser


def _configure_logging() -> None:
    import structlog

    # Plain tracebacks only: prettier ones show local variables, and those may be secrets.
    shown: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if sys.stderr.isatty()
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *shown,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")


def _init(arguments: argparse.Namespace) -> int:
    from toolbox_dtma.init import InitError, InitOptions, init
    from toolbox_dtma.state.files import StateCorrupt

    options = InitOptions(
        state_dir=arguments.state_dir.absolute(),
        gateway_dir=arguments.gateway_dir.absolute(),
        runtime_dir=arguments.runtime_dir.absolute(),
        addresses=tuple(dict.fromkeys(arguments.address)),
        management_port=arguments.management_port,
        gateway_port=arguments.gateway_port,
        gateway_user=arguments.gateway_user,
        name=arguments.name,
        namespace=arguments.namespace,
        gateway_workers=arguments.gateway_workers,
        bind=arguments.bind,
        docker_url=arguments.docker_url,
    )
    try:
        sys.stdout.write(init(options, now=lambda: datetime.now(UTC)))
    except (InitError, StateCorrupt) as error:
        return _fail(str(error))
    except PermissionError as error:
        return _fail(f"{error.filename or error}: {error.strerror}. Run it as root: sudo toolbox-dtma init …")
    return 0


def _renew(state_dir: Path, *, force: bool) -> int:
    from toolbox_dtma.init import InitError, renew
    from toolbox_dtma.state.files import StateCorrupt

    try:
        sys.stdout.write(renew(state_dir.absolute(), now=lambda: datetime.now(UTC), force=force))
    except (InitError, StateCorrupt) as error:
        return _fail(str(error))
    except PermissionError as error:
        return _fail(f"{error.filename or error}: {error.strerror}. Run it as root: sudo toolbox-dtma renew …")
    return 0


def _serve(state_dir: Path) -> int:
    from toolbox_dtma.certificates import PairRefused
    from toolbox_dtma.serve import serve_until_signal
    from toolbox_dtma.state.files import NO_SPACE, StateCorrupt
    from toolbox_dtma.state.store import NotInitialised, StateInUse

    try:
        asyncio.run(serve_until_signal(state_dir))
    except (NotInitialised, StateInUse, StateCorrupt, PairRefused) as error:
        return _fail(str(error))
    except PermissionError as error:
        return _fail(f"{error.filename or error}: {error.strerror}. Run it as root: sudo toolbox-dtma serve …")
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        # Not the code for what only an edit cures: whatever supervises this process is to go on trying.
        return _fail(f"{state_dir}: the disk is full. Nothing is lost; free space", code=1)
    return 0


def _gateway(config: Path, *, check_only: bool) -> int:
    from toolbox_dtma.gateway.supervisor import main as supervise

    return supervise(config, check_only=check_only)


def _fail(message: str, code: int = 2) -> int:
    sys.stderr.write(f"toolbox-dtma: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
