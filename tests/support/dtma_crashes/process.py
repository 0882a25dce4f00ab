"""Starts `toolbox-dtma serve` again and again, with every external write of it journalled.

A process that has everything imported forks one DTMA per order, so that a start costs no imports; it has no threads.
What is wrapped is handed in from here: the client of the Docker Engine, the runner of iptables, the gateway's
workers, the application of the management API, and the calls of `os` that change files. DTMA
itself knows nothing of it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import re
import signal
import socket
import sys
import traceback
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from support.dtma_crashes.journal import Journal
from toolbox_dtma import serve as serving
from toolbox_dtma.__main__ import main as toolbox_dtma
from toolbox_dtma.engine import docker as engine
from toolbox_dtma.engine.client import DockerClient, JsonObject
from toolbox_dtma.engine.firewall import Runner
from toolbox_dtma.link.messages import TO_WORKER, Delta, Snapshot
from toolbox_dtma.management.service import Service
from toolbox_dtma.policy import server as policy
from toolbox_dtma.policy.worker import Worker as RealWorker
from toolbox_dtma.settings import Timings

MUTATING = ("PUT", "POST", "PATCH", "DELETE")
_NAMED = re.compile(r"(?<=/)([0-9a-f]{12,64}|mtb-[a-z0-9-]+)(?=/|$)")
_KEY = re.compile(r"^(instances|probed|grants|departed|tombstones|owners)/.+\.json$")
_MANAGED = re.compile(r"^/v2/(instances|grants|owners)/[^/]+$")


class Order(BaseModel):
    """One line to the process: `start`, or `look` at whether the last one started has ended."""

    do: str


class Report(BaseModel):
    """Its answer. `ended` is a wait status, None while it runs."""

    pid: int
    ended: int | None = None


class Wrapping:
    """Puts the journal around everything through which this process changes the world outside it."""

    def __init__(self, journal: Journal, folders: Mapping[str, Path]) -> None:
        """`folders`: those that DTMA owns, by the name they have in the journal."""
        self._journal = journal
        self._folders = folders

    def install(self) -> None:
        """From here on every write counts."""
        journal = self._journal
        self._wrap_files()

        class Client(DockerClient):
            @asynccontextmanager
            async def _stream(
                self,
                method: str,
                path: str,
                params: Mapping[str, str],
                limits: aiohttp.ClientTimeout,
                headers: Mapping[str, str] | None = None,
                body: JsonObject | None = None,
                data: bytes | None = None,
            ) -> AsyncGenerator[aiohttp.ClientResponse]:
                what = f"docker {method} {_NAMED.sub('{id}', path)}"
                async with super()._stream(method, path, params, limits, headers, body, data) as response:
                    if path == "images/create":
                        journal.wrote(f"{what}, begun")
                    yield response
                if method in MUTATING:
                    journal.wrote(what)

        class Worker(RealWorker):
            def send(self, frame: bytes) -> None:
                super().send(frame)
                message = TO_WORKER.validate_json(frame[4:])
                if isinstance(message, Snapshot | Delta):
                    parts = sorted(message.change.model_dump(exclude_defaults=True))
                    what = "" if isinstance(message, Snapshot) else f" of {', '.join(parts)}"
                    journal.wrote(f"policy {message.kind}{what}")

        def runner(deadline: float) -> Runner:
            run = make_runner(deadline)

            async def journalled(program: str, *arguments: str, stdin: str | None = None) -> str:
                output = await run(program, *arguments, stdin=stdin)
                if not program.endswith("-save"):
                    journal.wrote(f"firewall {program}")
                return output

            return journalled

        def app(host: Service, *, token: str) -> ASGIApp:
            return _answering(make_app(host, token=token), journal)

        make_runner, make_app = engine.iptables_runner, serving.make_app
        for module, name, wrapped in (
            (engine, "DockerClient", Client),
            (engine, "iptables_runner", runner),
            (policy, "Worker", Worker),
            (serving, "make_app", app),
            # No worker hangs here, but on a busy machine one may take longer than the product allows it.
            (serving, "Timings", partial(Timings, silence=3.0)),
        ):
            setattr(module, name, wrapped)

    def _wrap_files(self) -> None:
        def changing(verb: str, call: Callable[..., Any], position: int) -> Callable[..., Any]:
            def wrapped(*arguments: Any, **options: Any) -> Any:
                result = call(*arguments, **options)
                if (name := self._name(arguments[position])) is not None:
                    self._journal.wrote(f"file {verb} {name}")
                return result

            return wrapped

        def opening(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
            result = real_open(path, flags, *arguments, **options)
            if flags & os.O_CREAT and (name := self._name(path)) is not None:
                self._journal.wrote(f"file begun {name}")
            return result

        real_open = os.open
        wrapped: dict[str, Callable[..., Any]] = {
            "open": opening,
            "replace": changing("replaced", os.replace, 1),
            "rename": changing("replaced", os.rename, 1),
            "unlink": changing("removed", os.unlink, 0),
            "remove": changing("removed", os.remove, 0),
            "mkdir": changing("made", os.mkdir, 0),
            "rmdir": changing("removed", os.rmdir, 0),
        }
        for name, call in wrapped.items():
            setattr(os, name, call)

    def _name(self, path: Any) -> str | None:
        """A path in one of DTMA's folders, without what differs from run to run; None for any other."""
        for folder_name, folder in self._folders.items():
            with contextlib.suppress(ValueError, TypeError):
                inside = Path(path).relative_to(folder)
                if inside.parts[:1] == ("calls",):
                    # Written when agents call, at no moment that two runs have in common.
                    return None
                kind = _KEY.sub(r"\1/{id}.json", re.sub(r"\.new-\w+", ".new", str(inside)))
                return f"{folder_name}/{kind}"
        return None


def _answering(app: ASGIApp, journal: Journal) -> ASGIApp:
    """The application with two more writes per mutating call: its answer, ready but not sent; and sent."""

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        what = ""

        async def journalled(message: Message) -> None:
            nonlocal what
            if message["type"] == "http.response.start":
                route = _MANAGED.sub(r"/v2/\1/{id}", scope["path"])
                what = f"{scope['method']} {route} {message['status']}"
                journal.wrote(f"answer withheld {what}")
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                journal.wrote(f"answer sent {what}")

        await app(scope, receive, journalled if scope.get("method") in MUTATING else send)

    return answering


def _child(arguments: argparse.Namespace) -> int:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    folders = {"state": arguments.state_dir, "run": arguments.runtime_dir}
    Wrapping(Journal(arguments.journal), folders).install()
    return toolbox_dtma(["serve", "--state-dir", str(arguments.state_dir)])


def main() -> int:
    """Carry out orders until the other side hangs up."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--socket", "--journal", "--state-dir", "--runtime-dir"):
        parser.add_argument(name, type=Path, required=True)
    arguments = parser.parse_args()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(arguments.socket))
    listener.listen(1)
    connection, _ = listener.accept()
    # What is there now is never collected: its pages stay shared with every child.
    gc.freeze()
    pid, ended = 0, None
    with connection, listener, connection.makefile("rb") as orders:
        for line in orders:
            order = Order.model_validate_json(line)
            if order.do == "start":
                pid, ended = os.fork(), None
                if pid == 0:
                    listener.close()
                    orders.close()
                    connection.close()
                    _run_child(arguments)
            elif ended is None:
                found, status = os.waitpid(pid, os.WNOHANG)
                ended = status if found else None
            connection.sendall(Report(pid=pid, ended=ended).model_dump_json().encode() + b"\n")
    return 0


def _run_child(arguments: argparse.Namespace) -> NoReturn:
    code = 70
    try:
        code = _child(arguments)
    except BaseException:
        # Whatever it was: a child must never go on as a second server of orders.
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
