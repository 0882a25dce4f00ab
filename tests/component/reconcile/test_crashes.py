"""The operator ends after, or just before, every single write of a scenario; another process finishes the work.

Enumerated, not sampled: the scenario runs once to count its writes, then once for each of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from support.reconcilers.world import NS, Crash, World, world
from toolbox_operator.api.meta import ANNOTATION_ROTATE, Key, Kind
from toolbox_operator.kube.api import SECRETS

pytestmark = pytest.mark.component

SERVER, CONNECTION, TOOLBOX = Key(NS, "time"), Key(NS, "bot-time"), Key(NS, "tbx-1")
Step = Callable[[World], None]


@dataclass
class Fuse:
    """Burns through at the nth write, before or after it takes effect."""

    at: int
    after: bool
    seen: list[str] = field(default_factory=list[str])
    armed: bool = True
    burnt: bool = False

    def before_write(self, name: str) -> None:
        """To be called before a write takes effect."""
        # Idempotent, and made by the task that keeps contact: nothing of a reconcile hangs on it.
        if not self.armed or name == "configure":
            return
        self.seen.append(name)
        if not self.after and len(self.seen) == self.at:
            self._burn()

    def after_write(self, name: str) -> None:
        """To be called once it did."""
        if self.armed and name == self.seen[-1] and self.after and len(self.seen) == self.at:
            self._burn()

    def _burn(self) -> None:
        self.armed, self.burnt = False, True
        raise Crash(f"at write {self.at}: {self.seen[-1]}")


def nothing(_: World) -> None:
    """The cluster already has what the step is about."""


def create(w: World) -> None:
    """Apply everything."""
    w.toolbox()
    w.server()
    w.connection()


def update(w: World) -> None:
    """Another image, fewer tools."""
    w.patch(Kind.MCP_SERVER, SERVER, image="registry.example.com/mcp-time:1.5")
    w.patch(Kind.CONNECTION, CONNECTION, expose={"tools": {"allow": ["get_*"]}})


def rotate(w: World) -> None:
    """A new token."""
    w.annotate(Kind.CONNECTION, CONNECTION, ANNOTATION_ROTATE, "1")


def switch_off(w: World) -> None:
    """No agent, no process."""
    w.patch(Kind.CONNECTION, CONNECTION, active=False)
    w.patch(Kind.MCP_SERVER, SERVER, state="Stopped")


def delete(w: World) -> None:
    """`kubectl delete -f` of everything, the Secret included."""
    w.kube.remove(SECRETS, Key(NS, "tbx-1-dtma"))
    for kind, key in ((Kind.TOOLBOX, TOOLBOX), (Kind.MCP_SERVER, SERVER), (Kind.CONNECTION, CONNECTION)):
        w.delete(kind, key)


SCENARIOS: dict[str, tuple[Step, Step]] = {
    "create": (nothing, create),
    "update": (create, update),
    "rotate": (create, rotate),
    "switch off": (create, switch_off),
    "delete": (create, delete),
}


def outcome(w: World) -> dict[str, Any]:
    """What matters in the end, without times, random tokens and versions."""
    bodies = {
        f"{plural} {key}": {
            "conditions": sorted((c["type"], c["status"], c["reason"]) for c in body["status"]["conditions"]),
            "phase": body["status"]["phase"],
            "observed": body["status"]["observedGeneration"] == body["metadata"]["generation"],
            "finalizers": sorted(body["metadata"].get("finalizers") or ()),
        }
        for (plural, key), body in w.kube.objects.items()
        if "status" in body
    }
    machine = w.machine()
    return {
        "objects": bodies,
        "secrets": sorted(str(key) for plural, key in w.kube.objects if plural == SECRETS.plural),
        "instances": [(d.image, d.state, d.generation) for d in machine.desired.values()],
        "grants": [(len(g.credentials), g.generation, g.expose.tools.allow) for g in machine.grants.values()],
        "closed": sorted(w.store.closed.values()),
    }


async def run(steps: tuple[Step, Step], fuse: Fuse) -> dict[str, Any]:
    """The scenario with a crash; the outcome once everything is quiet."""
    before, step = steps
    async with world() as w:
        before(w)
        await w.settle()
        w.kube.before_write, w.kube.after_write = fuse.before_write, fuse.after_write
        machine = w.machine()
        machine.before_call, machine.after_call = fuse.before_write, fuse.after_write
        await survive(w, lambda: step_and_settle(w, step))
        fuse.armed = False
        quiet_since = len(w.kube.writes)
        await w.restart()
        await w.settle()
        assert w.kube.writes[quiet_since:] == [], "a process that starts on a settled cluster writes nothing"
        return outcome(w)


async def step_and_settle(w: World, step: Step) -> None:
    step(w)
    await w.settle()


async def survive(w: World, action: Callable[[], Awaitable[None]]) -> None:
    """Do it; when the process ends meanwhile, go on with another one."""
    try:
        await action()
    except Crash:
        await w.restart()
        await w.settle()


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_crash_at_any_write_changes_nothing_about_the_outcome(name: str, after: bool) -> None:
    reference = Fuse(at=0, after=after)
    expected = await run(SCENARIOS[name], reference)
    assert reference.seen
    for at in range(1, len(reference.seen) + 1):
        fuse = Fuse(at=at, after=after)
        got = await run(SCENARIOS[name], fuse)
        assert fuse.burnt
        assert got == expected, f"crash {'after' if after else 'before'} write {at}: {fuse.seen[at - 1]}"
