"""An operator that SIGKILL ends right after a chosen write took effect: a launcher around the product.

`python -m support.operator_crashes.operator SOCKET` imports everything once and then forks an operator for each request
on the socket, so that one starts in a fraction of a second. The writes are seen at the clients that the product is
built from: `KubeRest`, `HttpHost` and psycopg's connection. A write counts once its answer is there; whether the
answer reached the process makes no difference to anybody outside of it.

Not counted are renewals of the Lease, which come by the clock and change nothing but a time, and commits of
transactions that only looked.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import random
import re
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

import psycopg
from sqlalchemy import event
from sqlalchemy.engine import Engine

from toolbox_dtma.wire import DesiredInstance, Grant
from toolbox_operator.__main__ import main
from toolbox_operator.hosts.client import HttpHost
from toolbox_operator.kube.rest import KubeRest

ORDER_SIZE = 1024
"""Bytes of the file that says when to end: written and read in one piece."""

_PR_SET_PDEATHSIG = 1
_CHANGES = re.compile(r'^\s*(INSERT INTO|UPDATE|DELETE FROM)\s+"?(?:magic_toolbox"?\.)?"?(\w+)', re.IGNORECASE)
_SCHEMA = re.compile(r"^\s*(CREATE|ALTER|DROP)\b", re.IGNORECASE)

Kinds = Sequence[str]
Seen = Callable[..., tuple[str, Kinds] | None]
"""What a call that returned wrote, from its arguments: in words and by kinds; None when it only read."""


@dataclass(frozen=True, slots=True)
class Order:
    """When to end: after write `at` since the order came, of those it counts; 0 is never."""

    number: int = 0
    at: int = 0
    only: tuple[str, ...] = ()
    """Count only writes of these kinds; empty: all."""
    but: tuple[str, ...] = ()
    """Do not count writes of nothing but these kinds."""

    def counts(self, kinds: Kinds) -> bool:
        """Whether a write of these kinds is counted."""
        return (not self.only or bool(set(kinds) & set(self.only))) and not set(kinds) <= set(self.but)

    def to_bytes(self) -> bytes:
        """As the file holds it."""
        shown = {"number": self.number, "at": self.at, "only": self.only, "but": self.but}
        return json.dumps(shown).encode().ljust(ORDER_SIZE)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Order:
        """As the file holds it."""
        found = json.loads(raw)
        return cls(found["number"], found["at"], tuple(found["only"]), tuple(found["but"]))


@dataclass
class Fuse:
    """Writes the journal, and ends the process when the order says so."""

    journal: int
    orders: int
    number: int = -1
    count: int = 0
    tables: list[str] = field(default_factory=list[str])
    """Changed in the SQL transaction under way."""

    def wrote(self, what: str, kinds: Kinds) -> None:
        """A write took effect."""
        order = Order.from_bytes(os.pread(self.orders, ORDER_SIZE, 0))
        if order.number != self.number:
            self.number, self.count = order.number, 0
        counted = order.counts(kinds)
        self.count += counted
        last = counted and order.at == self.count
        line = {"pid": os.getpid(), "order": order.number, "what": what, "kinds": [*kinds], "last": last}
        os.write(self.journal, json.dumps(line).encode() + b"\n")
        if last:
            os.kill(os.getpid(), signal.SIGKILL)


def kube_write(method: str, path: str, **request: Any) -> tuple[str, Kinds] | None:
    """What a request to the API server writes; None for reads."""
    if method == "GET":
        return None
    parts = path.split("/namespaces/", 1)[-1].split("/")
    plural, rest = parts[1], parts[2:]
    body = cast("Mapping[str, Any]", request.get("body") or {})
    if plural == "leases":
        spec = body["spec"]
        return ("lease acquired", ("lease acquired",)) if spec["acquireTime"] == spec["renewTime"] else None
    kind = f"{method} {'/'.join([plural, *rest[1:]])}"
    name = rest[0] if rest else body["metadata"]["name"]
    if plural == "events":
        return f"{kind} {name} {body.get('reason', '')}", (kind,)
    if method == "PATCH":
        metadata = cast("Mapping[str, Any]", body.get("metadata") or {})
        members: dict[str, object] = {**(metadata.get("annotations") or {}), **(body.get("data") or {})}
        changed = [f"finalizers={','.join(metadata['finalizers'])}"] if "finalizers" in metadata else []
        changed += [member if value else f"{member} removed" for member, value in members.items()]
        kind += f" {' '.join(changed)}"
    status = cast("Mapping[str, Any]", body.get("status") or {})
    shown = [f"{c['status']} {c['reason']}" for c in status.get("conditions", ()) if c["type"] == "Ready"]
    return " ".join([kind, f"({name})", *shown]), (kind,)


def host_write(call: str, arguments: Sequence[object]) -> tuple[str, Kinds]:
    """What a call to a host writes."""
    kind = f"host {call}"
    match arguments[-1] if arguments else None:
        case DesiredInstance(state=state, generation=generation):
            return f"{kind} {state} of generation {generation}", (f"{kind} {state}",)
        case Grant(credentials=credentials, generation=generation):
            return f"{kind} of generation {generation}", (f"{kind} with {len(credentials)} credentials",)
        case _:
            return kind, (kind,)


def host_call(name: str) -> Seen:
    """`host_write` of one method."""

    def seen(*arguments: object, **_: object) -> tuple[str, Kinds]:
        return host_write(name, arguments)

    return seen


def after(owner: type, name: str, seen: Seen, fuse: Fuse) -> None:
    """Have `fuse` told of every call of a method that returned, if `seen` says that it writes."""
    original = cast("Callable[..., Awaitable[Any]]", getattr(owner, name))

    @functools.wraps(original)
    async def call(self: object, *arguments: Any, **named: Any) -> Any:
        result = await original(self, *arguments, **named)
        write = seen(*arguments, **named)
        if write is not None:
            fuse.wrote(*write)
        return result

    setattr(owner, name, call)


def watch_sql(fuse: Fuse) -> None:
    """Have `fuse` told of every commit, with the tables it changed."""

    def execute(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if found := _CHANGES.match(statement):
            fuse.tables.append(found[2].lower())
        elif _SCHEMA.match(statement):
            fuse.tables.append("schema")
        elif "ensure_call_partitions" in statement:
            fuse.tables.append("partitions")

    def committed() -> tuple[str, Kinds] | None:
        kinds = tuple(f"commit {table}" for table in sorted(set(fuse.tables)))
        fuse.tables.clear()
        return (", ".join(kinds), kinds) if kinds else None

    def rolled_back() -> None:
        fuse.tables.clear()

    event.listen(Engine, "before_cursor_execute", execute)
    after(psycopg.AsyncConnection, "commit", committed, fuse)
    after(psycopg.AsyncConnection, "rollback", rolled_back, fuse)


def operate(journal: str, orders: str, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Be an operator, watched. In a process of its own."""
    # Dies with the process that forked it, which dies with the tests.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.update(environment)
    random.seed()
    fuse = Fuse(os.open(journal, os.O_WRONLY | os.O_APPEND), os.open(orders, os.O_RDONLY))
    after(KubeRest, "request", kube_write, fuse)
    for name in ("claim", "configure", "put_instance", "delete_instance", "put_grant", "delete_grant"):
        after(HttpHost, name, host_call(name), fuse)
    watch_sql(fuse)
    return main(["run", *arguments])


def be_operator(**request: Any) -> NoReturn:
    """`operate`, and never back into the loop of the process that forked this one."""
    code = 1
    try:
        code = operate(**request)
    except BaseException:  # The outermost boundary of the forked process.
        traceback.print_exc()
    finally:
        os._exit(code)


def serve(path: Path) -> None:
    """Fork an operator for every `start`, and tell how it ended when asked."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    connection, _ = listener.accept()
    with connection, connection.makefile("rw") as stream:
        for line in stream:
            request = json.loads(line)
            if "start" in request:
                pid = os.fork()
                if pid == 0:
                    connection.close()
                    listener.close()
                    be_operator(**request["start"])
                answer: int | None = pid
            else:
                pid, status = os.waitpid(request["ended"], os.WNOHANG)
                answer = os.waitstatus_to_exitcode(status) if pid else None
            stream.write(f"{json.dumps(answer)}\n")
            stream.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
