"""Calls at planned moments, from several processes: in one, sessions would wait for each other's Python.

`python -m support.bench.pacing` is such a process: a line of JSON says what to open, each further one a slice of calls.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any, Self

from support.bench.raw_calls import Endpoint, RawConnection

PROCESSES = 4
_BEFORE_THE_FIRST = 0.05
"""Seconds, for all processes to have read what is to be done."""


class Pacers:
    """Sessions with one endpoint, which call the same thing again and again. To be entered."""

    def __init__(self, endpoint: Endpoint, body: bytes, *, sessions: int, warm: int):
        """`warm`: calls of each session before anything is measured."""
        self._spec: Any = {"endpoint": asdict(endpoint), "body": body.decode(), "warm": warm}
        self._sessions = sessions
        self._processes: list[subprocess.Popen[str]] = []
        self._running = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            for at in range(PROCESSES):
                process = starting.enter_context(_started())
                self._processes.append(process)
                _tell(process, {**self._spec, "sessions": len(range(at, self._sessions, PROCESSES))})
                # One after the other: a gateway is not to take so many new clients at once for an attack.
                assert _heard(process) == "ready"
            self._running = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def slice(self, *, rate: int, per_session: int) -> list[float]:
        """Seconds of so many calls of each session, `rate` calls per second altogether, from their planned moments."""
        begin = time.perf_counter() + _BEFORE_THE_FIRST
        for at, process in enumerate(self._processes):
            firsts = [begin + session / rate for session in range(at, self._sessions, PROCESSES)]
            _tell(process, {"firsts": firsts, "every": self._sessions / rate, "calls": per_session})
        return [seconds for process in self._processes for seconds in _heard(process)]


@contextmanager
def _started() -> Generator[subprocess.Popen[str]]:
    argv = [sys.executable, "-m", "support.bench.pacing"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    try:
        yield process
    finally:
        # The end of its input is the end of its work.
        process.communicate(timeout=10)


def _tell(process: subprocess.Popen[str], what: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(what) + "\n")
    process.stdin.flush()


def _heard(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "a process that calls has failed"
    return json.loads(line)


def _say(what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _pace(connection: RawConnection, body: bytes, first: float, every: float, into: list[float], calls: int) -> None:
    """Calls at fixed moments; late ones at once."""
    for number in range(calls):
        planned = first + number * every
        left = planned - time.perf_counter()
        if left > 0:
            time.sleep(left)
        if connection.post(body).status == 200:
            into.append(time.perf_counter() - planned)


def _slice(connections: Sequence[RawConnection], body: bytes, plan: Any) -> list[float]:
    times: list[list[float]] = [[] for _ in connections]
    threads = [
        threading.Thread(target=_pace, args=(connection, body, first, plan["every"], into, plan["calls"]))
        for connection, first, into in zip(connections, plan["firsts"], times, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(each) == plan["calls"] for each in times), "a call failed"
    return [seconds for each in times for seconds in each]


def main() -> None:
    """Do as standard input says, until it ends."""
    spec = json.loads(sys.stdin.readline())
    body = spec["body"].encode()
    connections = [RawConnection(Endpoint(**spec["endpoint"])) for _ in range(spec["sessions"])]
    for connection in connections:
        connection.open_session()
        for _ in range(spec["warm"]):
            assert connection.post(body).status == 200
    _say("ready")
    for line in sys.stdin:
        _say(_slice(connections, body, json.loads(line)))
    for connection in connections:
        connection.close()


if __name__ == "__main__":
    main()
