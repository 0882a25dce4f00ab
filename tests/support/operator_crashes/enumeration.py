"""Lives that are cut short after every write, or again and again, and what each of them must end in."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from support.operator_crashes.launcher import Write
from support.operator_crashes.lives import PAUSE, STEPS, Site, Step, start, undisturbed
from support.operator_crashes.operator import Order
from support.operator_crashes.world import STEADY, Look

Event = tuple[str, str, str]

HARMLESS: set[Event] = {("Toolbox", "Warning", "InUse")}
"""True while the servers of a Toolbox that is being deleted leave: whether somebody looked then is chance."""
AT_DELETION: set[Event] = {("AgentMCPConnection", "Warning", "ServerNotFound")}
"""The same while everything is being deleted, one object after the other."""
BEGINNING = ("lease acquired", "host claim", "host configure", "commit partitions")
"""What every process writes before it can do anything for an object."""
ROWS = ("account_tool_environments", "account_tool_instances", "agents", "agent_mcp_connections")
NOTHING_NEW = (*BEGINNING, *(f"commit {table}" for table in ROWS))
"""What may be all that a process does which ends early: rows follow the objects, and are written again."""
ATTEMPTS = 3


@dataclass
class Reference:
    """The life that nobody disturbed."""

    expected: dict[str, Look] = field(default_factory=dict[str, Look])
    """The world after each step."""
    writes: dict[str, list[Write]] = field(default_factory=dict[str, list[Write]])
    warnings: set[Event] = field(default_factory=set[Event])

    @classmethod
    def live(cls, site: Site) -> Reference:
        """Live it."""
        found = cls()
        site.world.begin()
        for step in STEPS:
            found.expected[step.name], found.writes[step.name] = undisturbed(site, step)
        found.warnings = HARMLESS | {event for event in site.world.events() if event[1] == "Warning"}
        return found


@dataclass
class Crashes:
    """Lives with crashes, each compared with the reference."""

    site: Site
    reference: Reference
    last: defaultdict[str, list[Write]] = field(default_factory=lambda: defaultdict(list))
    """The last writes of processes, by step."""
    most: dict[str, int] = field(default_factory=dict[str, int])
    """The most writes that a step took when nobody disturbed it."""
    in_vain: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """How often a process was to end with a kind of write, by step, and lived on since nothing wrote it."""

    def __post_init__(self) -> None:
        self.most = {name: len(writes) for name, writes in self.reference.writes.items()}

    def by_number(self) -> None:
        """Kill after write 1, 2, 3 … of every step, for as long as there is such a write."""
        for at in itertools.count(1):
            orders = {step.name: Order(at=at) for step in STEPS if at <= self.most[step.name]}
            if not orders:
                return
            self._live(orders)

    def by_kind(self) -> None:
        """Kill after each kind of write that no number happened to be."""
        for _ in range(ATTEMPTS):
            missed = self.missed()
            while any(missed.values()):
                kinds = {name: kinds.pop() for name, kinds in missed.items() if kinds}
                self._live({name: Order(at=1, only=(kind,)) for name, kind in kinds.items()})

    def missed(self) -> Mapping[str, set[str]]:
        """Kinds of writes of the undisturbed life that no process ended with yet, by step.

        Some are made only if one object is looked at before another. One that never came again, however often it was
        waited for, cannot be missed.
        """
        return {
            name: {kind for write in writes for kind in write.kinds if self.in_vain[name, kind] < ATTEMPTS}
            - {kind for write in self.last[name] for kind in write.kinds}
            for name, writes in self.reference.writes.items()
        }

    def storm(self, rng: random.Random) -> dict[str, int]:
        """Kill every process of a life after a few writes that are more than a beginning; how many each step took.

        Each process gets a step nearer to the end, or this fails: there are not many more of them than writes.
        """
        self.site.world.begin()
        lives: dict[str, int] = {}
        for step in STEPS:
            with self._explained(step):
                useful = sum(not set(write.kinds) <= set(NOTHING_NEW) for write in self.reference.writes[step.name])
                lives[step.name] = self._weather(step, rng, limit=2 * useful + 10)
                self._check(step)
        return lives

    def _weather(self, step: Step, rng: random.Random, *, limit: int) -> int:
        operator = self.site.launcher
        expected = self.reference.expected[step.name]
        for life in range(1, limit + 1):
            operator.order(Order(at=rng.randint(1, 3), but=NOTHING_NEW))
            if life == 1:
                step.do(self.site)
            operator.start()
            if self.site.world.await_same(expected, operator.position, ended=lambda: not operator.running()):
                return life
        raise AssertionError(f"{limit} processes, each ended after some writes, did not get to the end")

    def _live(self, orders: Mapping[str, Order]) -> None:
        """One life, with an order for some of its steps."""
        self.site.world.begin()
        # What comes after the last order makes no difference to the end: its rows are compared as closed only.
        needed = max(index for index, step in enumerate(STEPS) if step.name in orders)
        for index, step in enumerate(STEPS):
            if index <= needed or step.name == "delete":
                with self._explained(step):
                    self._do(step, orders.get(step.name, Order()))
                    self._check(step)

    def _do(self, step: Step, order: Order) -> None:
        site, world, operator = self.site, self.site.world, self.site.launcher
        expected, begin = self.reference.expected[step.name], operator.position()
        operator.order(order)
        step.do(site)
        # Longer than otherwise: a write that was to be the last one may be late.
        steady = PAUSE if order.at else STEADY
        undisturbed = world.await_same(expected, operator.position, ended=lambda: not operator.running(), steady=steady)
        writes = operator.writes(begin)
        if undisturbed:
            self.most[step.name] = max(self.most[step.name], len(writes))
            written = {kind for write in writes for kind in write.kinds}
            self.in_vain.update((step.name, kind) for kind in order.only if kind not in written)
            return
        self.last[step.name] += [write for write in writes if write.last]
        operator.order(Order())
        start(site)
        assert world.await_same(expected, operator.position, ended=lambda: not operator.running())

    def _check(self, step: Step) -> None:
        step.check(self.site)
        false = {event for event in self.site.world.events() if event[1] == "Warning"} - self.reference.warnings
        if step.name == "delete":
            false -= AT_DELETION
        assert not false, f"false alarms: {sorted(false)}"

    @contextmanager
    def _explained(self, step: Step) -> Generator[None]:
        """Says what was written in a step that failed."""
        begin = self.site.launcher.position()
        try:
            yield
        except AssertionError as error:
            writes = self.site.launcher.writes(begin)
            written = "\n".join(f"{write.pid} {write.what}{' KILLED' * write.last}" for write in writes)
            error.add_note(f"{step.name}:\n{written}")
            raise


def table(crashes: Crashes) -> str:
    """How often the operator was killed, by step and by kind of write."""
    lines: list[str] = []
    for name, most in crashes.most.items():
        writes: Sequence[Write] = crashes.last[name]
        counted = Counter(kind for write in writes for kind in write.kinds)
        shown = ", ".join(f"{kind} ×{times}" for kind, times in sorted(counted.items()))
        lines.append(f"{name}: at most {most} writes, {len(writes)} kills: {shown}")
    lines += [
        f"{name}: {kind} came never again" for (name, kind), times in crashes.in_vain.items() if times >= ATTEMPTS
    ]
    return "\n".join(lines)
