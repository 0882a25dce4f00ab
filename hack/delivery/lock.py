"""The part of `requirements/dev.lock` that one extra needs: same versions, same hashes (docs/adr/0002).

    python -m delivery.lock operator > requirements.txt

The lock says for every package which others asked for it, so the part is found without asking an index.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localstack.kubernetes import REPOSITORY
from localstack.progress import SetupError

LOCK = REPOSITORY / "requirements" / "dev.lock"
PROJECT = REPOSITORY / "pyproject.toml"
EXTRAS = ("operator", "dtma")

_PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==([^\s\\;]+)")
_ASKED_BY = re.compile(r"^\s+#\s+(?:via\s+)?([A-Za-z0-9][\w.-]*)")


@dataclass(frozen=True, slots=True)
class Pin:
    """One package of the lock."""

    name: str
    version: str
    text: str
    """The requirement with its hashes, as the lock has it, without comments."""
    asked_by: frozenset[str]


def normalized(name: str) -> str:
    """A package's name in the form that names are compared in."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse(lock: str) -> dict[str, Pin]:
    """Every pin by name. Raises `SetupError` for one without hashes."""
    blocks = re.split(r"(?m)^(?=[a-z0-9])", lock)
    pins: dict[str, Pin] = {}
    for block in blocks:
        found = _PIN.match(block)
        if found is None:
            continue
        lines = [line for line in block.splitlines() if line.strip()]
        requirement = [line for line in lines if not line.lstrip().startswith("#")]
        if len(requirement) < 2 or not all("--hash=sha256:" in line for line in requirement[1:]):
            raise SetupError(f"{found[1]} has no hashes in the lock: run make lock")
        asked = {normalized(match[1]) for line in lines if (match := _ASKED_BY.match(line))}
        pins[normalized(found[1])] = Pin(normalized(found[1]), found[2], "\n".join(requirement), frozenset(asked))
    return pins


def roots(project: Mapping[str, Any], extra: str) -> list[str]:
    """Names of what the project asks for itself, with one extra."""
    table = project["project"]
    wanted: Sequence[str] = [*table["dependencies"], *table["optional-dependencies"][extra]]
    return [normalized(re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]) for requirement in wanted]


def closure(pins: Mapping[str, Pin], wanted: Iterable[str]) -> list[Pin]:
    """What is wanted and everything that it asks for, by name. Raises `SetupError` for what is not locked."""
    found = set(wanted)
    if missing := found - pins.keys():
        raise SetupError(f"not in the lock: {', '.join(sorted(missing))}: run make lock")
    while more := {pin.name for pin in pins.values() if pin.asked_by & found} - found:
        found |= more
    return [pins[name] for name in sorted(found)]


def requirements(extra: str, lock: Path = LOCK, project: Path = PROJECT) -> str:
    """A requirements file for one extra, with hashes, without the project itself."""
    pins = closure(parse(lock.read_text()), roots(tomllib.loads(project.read_text()), extra))
    return "".join(f"{pin.text}\n" for pin in pins)


def main() -> int:
    """Prints the requirements of the extra that the command line names."""
    if len(sys.argv) != 2 or sys.argv[1] not in EXTRAS:
        print(f"usage: python -m delivery.lock {'|'.join(EXTRAS)}", file=sys.stderr)
        return 2
    sys.stdout.write(requirements(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
