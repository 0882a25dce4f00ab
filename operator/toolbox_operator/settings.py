"""Flags and environment of the operator's process."""

from __future__ import annotations

import argparse
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from toolbox_operator.runtime import Settings, Timings

DEFAULTS = Settings()
TIMINGS = tuple(field.name for field in fields(Timings))


def own_identity() -> str:
    """A name no other process has: the host's (the pod's) and a random part."""
    return f"{socket.gethostname()}_{secrets.token_hex(4)}"


def parse(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings. Exits with usage on a mistake, as argparse does."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        timings = _timings(given.timing)
        database = _database(given.database_url, given.database_url_file, environment)
    except ValueError as error:
        parser.error(str(error))
    return Settings(
        namespace=given.namespace,
        workers=given.workers,
        workers_per_host=given.workers_per_host,
        metrics_port=given.metrics_port,
        health_port=given.health_port,
        database_url=database,
        timings=timings,
        kubeconfig=given.kubeconfig,
        identity=given.identity or own_identity(),
        listen=given.listen,
        log_json=given.log_format == "json",
        log_level=given.log_level,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="toolbox-operator", description="The operator of Magic Toolbox.")
    run = parser.add_subparsers(dest="command", required=True).add_parser(
        "run", help="take part in the election and, as leader, reconcile until stopped"
    )
    run.add_argument(
        "--kubeconfig", type=Path, metavar="PATH", help="use this kubeconfig instead of the pod's service account"
    )
    run.add_argument("--namespace", default=DEFAULTS.namespace, help="where the Lease lives (%(default)s)")
    run.add_argument("--identity", help="holder of the Lease; unique per process (host name and a random part)")
    run.add_argument("--workers", type=_positive, default=DEFAULTS.workers, help="reconciles at once, per kind")
    run.add_argument(
        "--workers-per-host",
        type=_positive,
        default=DEFAULTS.workers_per_host,
        help="of these for one host's objects, so that a host that hangs holds up no other",
    )
    run.add_argument("--listen", default=DEFAULTS.listen, help="address of health and metrics (%(default)s)")
    run.add_argument("--health-port", type=_port, default=DEFAULTS.health_port, help="/healthz and /readyz")
    run.add_argument("--metrics-port", type=_port, default=DEFAULTS.metrics_port, help="/metrics")
    run.add_argument("--database-url", metavar="URL", help="DSN of PostgreSQL; visible in the process list")
    run.add_argument("--database-url-file", type=Path, metavar="FILE", help="a file with the DSN; or env DATABASE_URL")
    run.add_argument("--log-format", choices=("text", "json"), default="text")
    run.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    run.add_argument(
        "--timing",
        action="append",
        default=[],
        metavar="NAME=SECONDS",
        help=f"override a delay; names: {', '.join(TIMINGS)}",
    )
    return parser


def _timings(given: Sequence[str]) -> Timings:
    changes: dict[str, float] = {}
    for entry in given:
        name, _, value = entry.partition("=")
        if name not in TIMINGS:
            raise ValueError(f"--timing {entry}: no such name; use one of {', '.join(TIMINGS)}")
        try:
            seconds = float(value)
        except ValueError:
            raise ValueError(f"--timing {entry}: not a number of seconds") from None
        if not 0.0 < seconds < 1e6:
            raise ValueError(f"--timing {entry}: must be above 0")
        changes[name] = seconds
    timings = replace(Timings(), **changes)
    if not timings.lease_retry < timings.lease_renew_deadline < timings.lease_duration:
        raise ValueError("lease_retry < lease_renew_deadline < lease_duration must hold")
    return timings


def _database(url: str | None, file: Path | None, environment: Mapping[str, str]) -> str | None:
    if url and file:
        raise ValueError("give --database-url or --database-url-file, not both")
    if file is not None:
        try:
            url = file.read_text().strip()
        except OSError as error:
            raise ValueError(f"--database-url-file: {error}") from None
        if not url:
            raise ValueError(f"--database-url-file: {file} is empty")
    return url or environment.get("DATABASE_URL") or None


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise ValueError
    return port


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number
