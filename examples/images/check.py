#!/usr/bin/env python3
"""Tries the image of an MCP server as a toolbox would run it: says what the server offers, or what is wrong with it.

    python3 check.py [options] IMAGE [ARGUMENT ...]

Without --port the server has to speak on stdin and stdout (`transport: stdio`), with it on HTTP (`transport:
streamable-http`). Needs Python and the docker command, nothing else. Exit code 0: the server listed its tools.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

FLAGS = (
    "--init",
    "--read-only",
    "--tmpfs=/tmp:rw,noexec,nosuid,nodev,mode=1777,size=67108864",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--ipc=private",
    "--memory=512m",
    "--memory-swap=512m",
    "--cpus=1",
    "--pids-limit=256",
    "--no-healthcheck",
)
"""What a toolbox does to every container, with the limits of a server that names none."""

REVISION = "2025-11-25"
DEADLINE = 60.0
"""Seconds for a start and for each answer, unless told otherwise; a toolbox gives a starting server as long."""
END_DEADLINE = 10.0
"""At most so many seconds has a server to end in, once its input has ended."""
DOCKER_DEADLINE = 300.0
PAGES = 100


class Unfit(Exception):
    """The image would not work on a toolbox; the message says what to change."""


class Link(Protocol):
    """A connection to a server."""

    def send(self, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Sends a message, and gives what the server says from then on."""
        ...


class Stdio:
    """A server on the pipes of `docker run`: one JSON object per line."""

    def __init__(self, argv: Sequence[str], seconds: float) -> None:
        self._seconds = seconds
        self._name = f"check-{os.getpid()}"
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            ["docker", "run", f"--name={self._name}", "--interactive", "--rm", "--log-driver=none", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def _log_end(self) -> str:
        self._log.seek(0)
        return "\n  ".join(["", *self._log.read().decode(errors="replace").splitlines()[-15:]])

    def send(self, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # told below, with what the server said last
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        return self._heard(f"answer to {message['method']}", time.monotonic() + self._seconds)

    def _heard(self, awaited: str, until: float) -> Iterator[dict[str, Any]]:
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise Unfit(f"no {awaited} within {self._seconds:g} s; the server's log:{self._log_end()}") from None
            if not line:
                raise Unfit(f"no {awaited}: exit code {self._process.wait()}; the server's log:{self._log_end()}")
            try:
                message = json.loads(line)
            except ValueError:
                message = None
            if not isinstance(message, dict):
                raise Unfit(f"stdout is for MCP alone, log to stderr; the server wrote {line[:100]!r}")
            yield message

    def close(self) -> None:
        """Ends the server's input, and with it the server."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(min(END_DEADLINE, self._seconds))
        except subprocess.TimeoutExpired:
            print("note: the server does not end when its input does: a toolbox has to kill it each time")
            docker("rm", "--force", self._name)
            self._process.wait(END_DEADLINE)


class Http:
    """A server on a port of its container, published on loopback while this runs."""

    def __init__(self, argv: Sequence[str], seconds: float, port: int, path: str) -> None:
        self._seconds, self._port, self._path = seconds, port, path
        self._container = docker("run", "--detach", f"--publish=127.0.0.1::{port}", *argv)
        self._session: dict[str, str] = {}

    def send(self, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
        until = time.monotonic() + self._seconds
        while True:
            try:
                return iter(self._post(json.dumps(message)))
            except (OSError, http.client.HTTPException) as error:
                state = docker("inspect", "--format={{.State.Status}}, exit code {{.State.ExitCode}}", self._container)
                if not state.startswith("running") or time.monotonic() > until:
                    log = docker("logs", "--tail=15", self._container)
                    raise Unfit(f"nothing on port {self._port} ({error}); {state}; its log:\n{log}") from None
                time.sleep(0.2)

    def _post(self, body: str) -> list[dict[str, Any]]:
        address = docker("port", self._container, str(self._port)).split()[0]
        connection = http.client.HTTPConnection(address, timeout=self._seconds)
        headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json", **self._session}
        # As the gateway does: many servers answer to no other name.
        connection.request("POST", self._path, body, {**headers, "Host": f"localhost:{self._port}"})
        with contextlib.closing(connection), connection.getresponse() as answer:
            text = answer.read().decode()
            if answer.status >= 400:
                raise Unfit(f"HTTP {answer.status} on {self._path}: {text[:200]}")
            if session := answer.headers.get("Mcp-Session-Id"):
                self._session = {"Mcp-Session-Id": session, "MCP-Protocol-Version": REVISION}
            if answer.headers.get_content_type() == "text/event-stream":
                data = [line.removeprefix("data:") for line in text.splitlines() if line.startswith("data:")]
                return [json.loads(line) for line in data if line.strip()]
            return [json.loads(text)] if text else []

    def close(self) -> None:
        """Removes the container."""
        docker("rm", "--force", self._container)


def docker(*arguments: str) -> str:
    """Output of a docker command, its log included; `Unfit` with what it said if it fails."""
    argv = ["docker", *arguments]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DOCKER_DEADLINE)
    if done.returncode:
        raise Unfit(f"docker {arguments[0]}: {done.stdout.strip()}")
    return done.stdout.strip()


def ask(link: Link, number: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """The result of a request."""
    for message in link.send({"jsonrpc": "2.0", "id": number, "method": method, "params": params}):
        if message.get("id") == number and "method" not in message:
            if "result" not in message:
                raise Unfit(f"{method}: {message.get('error')}")
            return message["result"]
    raise Unfit(f"no answer to {method}")


def converse(link: Link) -> None:
    """Shakes hands, and prints what the server calls itself and its tools."""
    client = {"name": "check", "version": "1"}
    opened = ask(link, 0, "initialize", {"protocolVersion": REVISION, "capabilities": {}, "clientInfo": client})
    link.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
    server = opened["serverInfo"]
    print(f"{server['name']} {server['version']}, revision {opened['protocolVersion']}")
    names: list[str] = []
    cursor: dict[str, Any] = {}
    for number in range(1, PAGES + 1):
        page = ask(link, number, "tools/list", cursor)
        names += [tool["name"] for tool in page["tools"]]
        if not page.get("nextCursor"):
            print(f"{len(names)} tools: {' '.join(names)}")
            return
        cursor = {"cursor": page["nextCursor"]}
    raise Unfit(f"tools/list does not end after {PAGES} pages")


def main() -> int:
    """Runs the check."""
    parser = argparse.ArgumentParser(usage="check.py [options] IMAGE [ARGUMENT ...]")
    parser.add_argument("--volume", action="append", default=[], metavar="NAME:/PATH", help="a named volume")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--user", type=int, help="as spec.security.runAsUser")
    parser.add_argument("--port", type=int, help="the server speaks HTTP on this port")
    parser.add_argument("--path", default="/mcp", help="the path it answers on (%(default)s)")
    parser.add_argument("--deadline", type=float, default=DEADLINE, help="seconds for each answer (%(default)g)")
    parser.add_argument("image")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    argv = [*FLAGS, *(f"--volume={volume}" for volume in given.volume), *(f"--env={item}" for item in given.env)]
    if given.user is not None:
        argv.append(f"--user={given.user}")
    argv += [given.image, *given.arguments]
    try:
        link = Http(argv, given.deadline, given.port, given.path) if given.port else Stdio(argv, given.deadline)
        with contextlib.closing(link):
            converse(link)
        user = given.user or docker("image", "inspect", "--format={{.Config.User}}", given.image)
        if user in ("", "0", "root"):
            print("note: the image runs as root: give it a USER, or the server a spec.security.runAsUser")
    except Unfit as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
