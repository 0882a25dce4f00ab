"""What measurements end as: samples, rows with a verdict, and the page that holds them."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Sample:
    """Durations in seconds."""

    seconds: tuple[float, ...]

    @staticmethod
    def of(seconds: Iterable[float]) -> Sample:
        """The durations in ascending order; at least one."""
        ordered = tuple(sorted(seconds))
        if not ordered:
            raise ValueError("a sample needs at least one value")
        return Sample(ordered)

    def at(self, share: float) -> float:
        """The smallest value that at least this share of all values does not exceed (nearest rank)."""
        rank = -(-len(self.seconds) * round(share * 1000) // 1000)
        return self.seconds[max(rank, 1) - 1]

    @property
    def median(self) -> float:
        """The value in the middle."""
        return self.at(0.5)

    def cells(self) -> tuple[str, ...]:
        """As `DURATIONS` names them."""
        values = (self.seconds[0], self.at(0.5), self.at(0.95), self.at(0.99), self.seconds[-1])
        return str(len(self.seconds)), *(milliseconds(value) for value in values)


DURATIONS = ("n", "min", "p50", "p95", "p99", "max")
"""Header of what `Sample.cells` gives, in milliseconds."""


def milliseconds(seconds: float) -> str:
    """Three significant digits, and no fraction above 100."""
    value = seconds * 1000
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


@dataclass(slots=True)
class Section:
    """One measurement: how it was made, and a table."""

    title: str
    method: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list[tuple[str, ...]])
    missed: list[str] = field(default_factory=list[str])

    def add(self, *cells: str, met: bool | None = None) -> None:
        """A row; `met` says whether its bound holds, None that it has none."""
        if len(cells) != len(self.header):
            raise ValueError(f"{len(cells)} cells under {len(self.header)} headings")
        if met is False:
            self.missed.append(f"{self.title}: {', '.join(cells)}")
        self.rows.append((*cells, "" if met is None else "met" if met else "**missed**"))

    def note(self, text: str) -> None:
        """A sentence more about the method, which only the run could tell."""
        self.method = f"{self.method} {text}."

    def check(self) -> None:
        """Raises `AssertionError` when a row missed its bound."""
        assert not self.missed, "\n".join(self.missed)

    def markdown(self) -> str:
        """Title, method and table."""
        return f"## {self.title}\n\n{self.method}\n\n{table((*self.header, 'verdict'), self.rows)}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with columns of even width."""
    widths = [max(len(line[index]) for line in (header, *rows)) for index in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(f"| {' | '.join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))} |" for line in lines)


@dataclass(slots=True)
class Report:
    """Every measurement of a run."""

    machine: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    sections: list[Section] = field(default_factory=list[Section])

    def section(self, title: str, method: str, header: tuple[str, ...]) -> Section:
        """A new section at the end."""
        section = Section(title, " ".join(method.split()), header)
        self.sections.append(section)
        return section

    def markdown(self) -> str:
        """The whole page."""
        machine = table(("machine", ""), self.machine)
        return "\n\n".join([INTRODUCTION, machine, *(section.markdown() for section in self.sections)]) + "\n"


INTRODUCTION = """\
# Benchmarks

Written by `make bench`, which also ends with an error when a bound is missed. Everything is measured on real parts
(API server, Docker Engine, PostgreSQL, operator, DTMA and gateway, each a process of its own, TLS between them) on
one machine that carries all of them and the load as well. Times are milliseconds on a clock that never jumps; what is
compared is measured alternately in the same run, so ratios mean more than figures. Percentiles are nearest rank. The
cases without a verdict have no bound."""


def machine() -> list[tuple[str, str]]:
    """What this machine is, without its name."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return [
        ("cores", f"{len(os.sched_getaffinity(0))} of {model}"),
        ("memory", f"{memory:.0f} GiB"),
        # What a distribution or a cloud adds to it can be a name.
        ("kernel", platform.release().partition("-")[0]),
        ("Python", platform.python_version()),
        ("load average at the start", load),
    ]
