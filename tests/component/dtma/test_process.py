"""`toolbox-dtma serve` as a process: start without an engine, stop by signal, refuse what it cannot do."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.dtma.host import DtmaHost
from support.poll import until
from toolbox_dtma.state.files import read_record, write_record
from toolbox_dtma.state.records import HostRecord

pytestmark = pytest.mark.component

Serve = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def host_folder(open_folder: Path) -> DtmaHost:
    """An initialised host whose engine is away."""
    host = DtmaHost(open_folder)
    path = host.state_dir / "host.json"
    away = f"unix://{open_folder}/no-docker.sock"
    write_record(path, read_record(path, HostRecord).model_copy(update={"docker_url": away}))
    return host


@pytest.fixture
def serve(host_folder: DtmaHost) -> Generator[Serve]:
    """Starts DTMA; its log goes to `log` in the host's folder."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "toolbox_dtma", "serve", "--state-dir", str(host_folder.state_dir)]
        with (host_folder.folder / "log").open("ab") as log:
            started.append(subprocess.Popen(command, env=environment, stderr=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait(timeout=10)


def log_of(host: DtmaHost) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (host.folder / "log").read_text().splitlines() if line.startswith("{")]


def test_it_serves_without_an_engine_and_stops_by_signal(host_folder: DtmaHost, serve: Serve) -> None:
    process = serve()
    trust = ssl.create_default_context(cafile=host_folder.state_dir / "ca.crt")

    def ready() -> bool:
        return any(line["event"] == "ready" for line in log_of(host_folder))

    until("ready", ready)
    token = (host_folder.state_dir / "token").read_text()
    headers = {"Authorization": f"Bearer {token}", "Toolbox-Owner": "cluster-a", "Toolbox-Epoch": "1"}
    with httpx.Client(base_url=f"https://127.0.0.1:{host_folder.port}", headers=headers, verify=trust) as client:
        assert client.put("/v2/owners/cluster-a", json={"epoch": 1}).status_code == 200
        assert client.get("/v2/host").json()["engine"]["available"] is False
        with client.stream("GET", "/v2/events") as events:
            assert events.status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=15) == 0
    text = (host_folder.folder / "log").read_text()
    assert [line["event"] for line in log_of(host_folder)].count("ready") == 1
    assert token not in text
    assert "Traceback" not in text


def test_a_port_that_is_taken_is_an_error_exit(host_folder: DtmaHost, serve: Serve) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", host_folder.port))
        taken.listen()
        assert serve().wait(timeout=30) != 0
    assert "could not listen" in (host_folder.folder / "log").read_text()


def test_a_second_one_on_the_same_folder_is_refused_and_changes_nothing(host_folder: DtmaHost, serve: Serve) -> None:
    first = serve()
    until("ready", lambda: any(line["event"] == "ready" for line in log_of(host_folder)))
    before = {path: path.stat().st_mtime_ns for path in host_folder.folder.rglob("*") if path.name != "log"}
    second = serve()
    assert second.wait(timeout=30) == 2
    text = (host_folder.folder / "log").read_text()
    assert f"another DTMA runs on {host_folder.state_dir}" in text
    assert "Traceback" not in text
    assert {path: path.stat().st_mtime_ns for path in host_folder.folder.rglob("*") if path.name != "log"} == before
    first.kill()
    first.wait(timeout=10)
    serve()
    until("ready again", lambda: [line["event"] for line in log_of(host_folder)].count("ready") == 2)


def test_a_damaged_file_is_one_line_that_names_it(host_folder: DtmaHost, serve: Serve) -> None:
    (host_folder.state_dir / "keyring.json").write_text("{")
    assert serve().wait(timeout=30) == 2
    text = (host_folder.folder / "log").read_text()
    assert str(host_folder.state_dir / "keyring.json") in text
    assert text.count("\n") == 1
