"""An owner of a host as an operator is one: it repeats what it wants until the host echoes it."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import signal
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from localstack import firewall
from support.dtma_crashes.host import CrashHost
from support.dtma_crashes.world import Life, Onlooker, Plain
from support.manifests import QUICK_SERVER
from support.reconcilers.fakes import Leading
from toolbox_dtma.engine.api import Holder
from toolbox_dtma.wire import (
    Credential,
    DesiredInstance,
    Egress,
    EnvVar,
    Expose,
    Grant,
    HostConfig,
    InstancePhase,
    InstanceState,
    NameFilter,
    ProblemCode,
    Security,
    Volume,
    canonical_hash,
)
from toolbox_operator.hosts.api import HostProblem, HostSettings, HostUnreachable
from toolbox_operator.hosts.client import HttpHost
from toolbox_operator.runtime import Timings

NAMESPACE, NAME = "team-a", "time"
PAUSE = 0.03
LOOKS = 200
"""At an instance, before it is put again."""
PATIENCE = 120.0
REPEATED = frozenset({ProblemCode.ACK_PENDING, ProblemCode.ENGINE_UNAVAILABLE, ProblemCode.INTERNAL})
"""Problems that an owner answers by asking again."""
NO_WHOAMI = Expose(tools=NameFilter(deny=("whoami",)))


class NotYet(Exception):
    """The host does not echo what is wanted; it may need another look."""


@dataclass(frozen=True, slots=True)
class Images:
    """Two names of one image with Python, in a registry."""

    first: str
    second: str


@dataclass
class Owner:
    """Holds what is wanted of one life, and puts it on the host."""

    crash: CrashHost
    onlooker: Onlooker
    images: Images
    life: Life
    problems: list[ProblemCode] = field(default_factory=list[ProblemCode])
    """What the host refused for the time being."""

    def __post_init__(self) -> None:
        self.host = HttpHost(settings(self.crash), Leading(self.life.owner), Timings(host_call=15.0, host_connect=2.0))
        self.desired = DesiredInstance(
            uid=self.life.uid,
            namespace=NAMESPACE,
            name=NAME,
            generation=1,
            inputs_hash=f"{1:064x}",
            image=self.images.first,
            port=8000,
            path="/mcp",
            command=("python3", "-S", "-c", QUICK_SERVER),
            security=Security(run_as_user=10001),
            volumes=(Volume(name="data", mount_path="/data"),),
        )
        holder = Holder(self.life.instance, self.life.owner, NAMESPACE, NAME)
        self.life.others[self.crash.names.volume(holder, "data")] = "VOLUME"
        self.granted: dict[str, Grant] = {}

    # ------------------------------------------------------------------ wanting
    def change(self, **changes: Any) -> None:
        """Another generation of the instance."""
        generation = self.desired.generation + 1
        numbers = {"generation": generation, "inputs_hash": f"{generation:064x}"}
        self.desired = self.desired.model_copy(update=numbers | changes)

    def grant(self, connection: str, *tokens: str, generation: int = 1, server_expose: Expose | None = None) -> None:
        """A grant for tokens, by their names in this life."""
        self.granted[connection] = Grant(
            namespace=NAMESPACE,
            name="bot",
            generation=generation,
            instance=self.life.instance,
            agent="bot",
            credentials=tuple(Credential(value=digest(self.token(name))) for name in tokens),
            server_expose=server_expose or Expose(),
        )
        self.life.contents[connection] = canonical_hash(self.granted[connection])

    def token(self, name: str) -> str:
        """The token of this name."""
        return self.life.tokens.setdefault(name, f"mtb_{secrets.token_urlsafe(32)}")

    # ------------------------------------------------------------------- asking
    async def until_done(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Repeat an attempt from its beginning until nothing of it failed. A DTMA that dies is started again."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while True:
            try:
                return await attempt()
            except HostProblem as problem:
                if problem.code not in REPEATED:
                    raise
                self.problems.append(problem.code)
                failure: Exception = problem
            except (HostUnreachable, NotYet) as error:
                failure = error
                self.crash.revive()
            if loop.time() > deadline:
                raise AssertionError(f"not done after {PATIENCE:.0f}s; last: {failure!r}") from failure
            await asyncio.sleep(PAUSE)

    async def introduce(self) -> None:
        """Claim and configure."""
        await self.host.claim(1)
        port = self.crash.host.gateway_port
        await self.host.configure(HostConfig(gateway_url=f"https://127.0.0.1:{port}"))

    async def put_instance(self) -> None:
        """Put the instance and wait for its echo in the phase it is meant to reach."""
        await self.host.put_instance(self.life.instance, self.desired)
        stopped = self.desired.state is InstanceState.STOPPED
        wanted = InstancePhase.STOPPED if stopped else InstancePhase.READY
        echo = (self.desired.generation, self.desired.inputs_hash, wanted)
        observed = None
        for _ in range(LOOKS):
            report = await self.host.get_instance(self.life.instance)
            observed = report.observed if report else None
            if observed and (observed.generation, observed.inputs_hash, observed.phase) == echo:
                return
            await asyncio.sleep(PAUSE)
        raise NotYet(f"the host shows {observed!r}")

    async def put_grants(self) -> None:
        """Put every grant; a revoked one is refused."""
        for connection, grant in self.granted.items():
            report = await self.host.put_grant(connection, grant)
            assert report.programmed and report.content_hash == canonical_hash(grant)

    async def revoke(self, connection: str) -> None:
        """Delete a grant."""
        await self.host.delete_grant(connection, namespace=NAMESPACE, name="bot")

    async def remove(self) -> None:
        """Delete the instance."""
        await self.host.delete_instance(self.life.instance, uid=self.desired.uid, namespace=NAMESPACE, name=NAME)

    async def leave(self) -> None:
        """Have nothing here any more."""
        await self.introduce()
        await self.remove()

    async def stays_deleted(self) -> None:
        """What was deleted is refused, whatever died meanwhile."""
        with pytest.raises(HostProblem) as late:
            await self.host.put_instance(self.life.instance, self.desired)
        assert late.value.code is ProblemCode.DELETED

    # ------------------------------------------------------------------- seeing
    async def world(self) -> Plain:
        """What the host says of itself, and what is to be seen around it."""
        facts = await self.host.facts()
        instances = (await self.host.list_instances()).items
        grants = await self.host.list_grants()
        return await asyncio.to_thread(self.onlooker.world, self.life, facts, instances, grants)


def settings(crash: CrashHost) -> HostSettings:
    """How to reach the host's DTMA."""
    token = (crash.host.state_dir / "token").read_text().strip()
    endpoint = f"https://127.0.0.1:{crash.host.management_port}"
    return HostSettings(endpoint, token, "", ca_pem=crash.host.ca_file.read_text())


def digest(token: str) -> str:
    """What a host knows of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def new_life() -> Life:
    """Fresh identities."""
    owner, instance, uid, connection = (str(uuid.uuid4()) for _ in range(4))
    return Life(owner, instance, uid, connection)


Attempt = Callable[[Owner], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing an owner wants: told once to the owner, then attempted until it is done."""

    name: str
    want: Callable[[Owner], None]
    attempt: Attempt
    ends: tuple[str, ...] = ()
    """Tokens that work no more once the attempt is done."""
    keeps: tuple[str, ...] = ()
    """Tokens whose calls are answered all the time, whatever dies meanwhile."""


async def _everything(owner: Owner) -> None:
    await owner.introduce()
    await owner.put_instance()
    await owner.put_grants()


async def _grants(owner: Owner) -> None:
    await owner.put_grants()


async def _instance(owner: Owner) -> None:
    await owner.put_instance()


async def _moved(owner: Owner) -> None:
    await owner.put_instance()
    # The network that was left goes once the server is there.
    for _ in range(LOOKS):
        if len(await asyncio.to_thread(owner.onlooker.networks)) == 1:
            return
        await owner.host.facts()
        await asyncio.sleep(PAUSE)
    raise NotYet("the host has another network than the one that is wanted")


async def _revoke(owner: Owner) -> None:
    await owner.revoke(owner.life.connection)


async def _remove(owner: Owner) -> None:
    await owner.remove()


def _end_dtma(owner: Owner) -> None:
    owner.crash.end(signal.SIGKILL)
    # A start then has them to make, as after a reboot.
    firewall.remove(f"MTB-{owner.crash.names.tag}-")


async def _start_dtma(owner: Owner) -> None:
    if owner.crash.ended:
        owner.crash.start()
    await owner.host.facts()


def _connect_again(owner: Owner) -> None:
    owner.granted.clear()
    again = str(uuid.uuid5(uuid.UUID(owner.life.connection), "again"))
    owner.life.others[again] = "CONNECTION-2"
    owner.grant(again, "c")


def _wants(**changes: Any) -> Callable[[Owner], None]:
    return lambda owner: owner.change(**changes)


def _wants_grant(*tokens: str, **changes: Any) -> Callable[[Owner], None]:
    return lambda owner: owner.grant(owner.life.connection, *tokens, **changes)


def _nothing(_: Owner) -> None:
    """It wants only what the attempt asks for."""


def _update(owner: Owner) -> None:
    owner.change(image=owner.images.second, env=(EnvVar(name="VERSION", value="2"),))


def _narrow(owner: Owner) -> None:
    owner.change(expose=NO_WHOAMI)
    owner.grant(owner.life.connection, "a", server_expose=NO_WHOAMI)


CREATE = Step("create", _wants_grant("a"), _everything)
DELETE = Step("delete", _nothing, _remove, ends=("c",))

DEPLOYMENT = (
    CREATE,
    Step("update", _update, _instance),
    Step("delete", _nothing, _remove, ends=("a",)),
)
EGRESS = (
    CREATE,
    Step("egress None", _wants(security=Security(egress=Egress.NONE)), _moved),
    Step("egress All", _wants(security=Security(egress=Egress.ALL)), _moved),
    Step("delete", _nothing, _remove, ends=("a",)),
)
CONNECTIONS = (
    CREATE,
    Step("narrow", _narrow, _everything, keeps=("a",)),
    Step("restart of DTMA", _end_dtma, _start_dtma, keeps=("a",)),
    Step("rotate", _wants_grant("a", "b"), _grants, keeps=("a",)),
    Step("rotated", _wants_grant("b"), _grants, ends=("a",), keeps=("b",)),
    Step("stop", _wants(state=InstanceState.STOPPED), _instance),
    Step("start", _wants(state=InstanceState.RUNNING), _instance),
    Step("revoke", _nothing, _revoke, ends=("b",)),
    Step("connect", _connect_again, _grants),
    DELETE,
)
