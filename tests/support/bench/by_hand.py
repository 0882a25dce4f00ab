"""A server on stdio started by hand: with the Docker Engine's API alone, and nothing of ours between it and us."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from localstack.docker import SOCKET
from support.bench.system import OverUnixSocket

API = "/v1.41/containers"
SECONDS = 30.0
_STDOUT = 1


def asked(method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """What the engine answers a request for a container. Raises `AssertionError` if it refuses."""
    connection = OverUnixSocket("localhost", timeout=SECONDS)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, f"{API}{path}", content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        assert answer.status < 300, said
        return json.loads(said) if said else None
    finally:
        connection.close()


def same(shown: Mapping[str, Any], label: str) -> dict[str, Any]:
    """The request for a container like one that the engine shows, under a label of its own."""
    key, _, value = label.partition("=")
    config = {name: shown["Config"][name] for name in shown["Config"] if name != "Hostname"}
    ends: dict[str, Any] = {name: {} for name in shown["NetworkSettings"]["Networks"]}
    return {
        **config,
        "Labels": {key: value},
        "HostConfig": shown["HostConfig"],
        "NetworkingConfig": {"EndpointsConfig": ends},
    }


class Process:
    """The process of a started container, by its streams."""

    def __init__(self, container: str) -> None:
        """Attaches; the container is started afterwards, so that nothing is missed."""
        self.container = container
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SECONDS)
        self._socket.connect(str(SOCKET))
        path = f"{API}/{container}/attach?stream=1&stdin=1&stdout=1&stderr=1"
        lines = (f"POST {path} HTTP/1.1", "Host: docker", "Connection: Upgrade", "Upgrade: tcp", "Content-Length: 0")
        self._socket.sendall("\r\n".join((*lines, "", "")).encode())
        self._file = self._socket.makefile("rb")
        line = self._file.readline()
        if b" 101 " not in line:
            raise http.client.BadStatusLine(line.decode())
        while self._file.readline().rstrip():
            pass

    def ask(self, body: bytes) -> bytes:
        """Writes a line; what is written to standard output until the end of a line."""
        self._socket.sendall(body + b"\n")
        said = b""
        while not said.endswith(b"\n"):
            head = self._file.read(8)
            assert len(head) == 8, "the process has ended"
            piece = self._file.read(int.from_bytes(head[4:], "big"))
            if head[0] == _STDOUT:
                said += piece
        return said

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._socket.close()


@contextmanager
def started(request: Mapping[str, Any]) -> Generator[Process]:
    """A container, made, attached to and started; removed at the end."""
    container = str(asked("POST", "/create", request)["Id"])
    try:
        process = Process(container)
        try:
            asked("POST", f"/{container}/start")
            yield process
        finally:
            process.close()
    finally:
        asked("DELETE", f"/{container}?force=1&v=1")
