"""A witness beside a Docker engine: sees every start and end of a host's containers, also between looks of a test."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from toolbox_dtma.engine.names import LABEL_HELPER, LABEL_HOST, LABEL_INSTANCE


class Witness:
    """How many containers of one instance ran at the same time, at most."""

    def __init__(self) -> None:
        self._running: dict[str, set[str]] = defaultdict(set)
        self._lock = threading.Lock()
        self.doubles: list[str] = []
        """One line for each time that a second container of an instance started beside a running one."""
        self.removed: set[str] = set()
        """Every container whose removal was seen."""
        self.starts: dict[str, list[float]] = defaultdict(list)
        """When each container was started, by the engine's clock, as far as that was seen happening."""

    def saw(self, action: str, container: str, instance: str) -> None:
        """Takes one event of the engine."""
        with self._lock:
            running = self._running[instance]
            if action == "start":
                running.add(container)
                if len(running) > 1:
                    self.doubles.append(f"instance {instance}: {', '.join(sorted(running))} run side by side")
            elif action in ("die", "destroy"):
                running.discard(container)
            if action == "destroy":
                self.removed.add(container)


@contextmanager
def witness(docker: Sequence[str], host_id: str) -> Generator[Witness]:
    """Watches a host's containers; `docker` is the command line to ask its engine. What runs already is taken in.

    An engine that is restarted ends the stream; then the witness has seen what was before it.
    """
    seen = Witness()
    label = f"label={LABEL_HOST}={host_id}"
    shown = f'{{{{.ID}}}} {{{{.Label "{LABEL_INSTANCE}"}}}}'
    # Since the beginning of time of this engine: nothing falls between the two questions.
    listed = subprocess.run(
        [*docker, "ps", "--no-trunc", "--filter", label, "--format", shown],
        check=True, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    process = subprocess.Popen(
        [*docker, "events", "--filter", label, "--filter", "type=container", "--format", "{{json .}}"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    for line in listed.stdout.splitlines():
        container, _, instance = line.partition(" ")
        seen.saw("start", container, instance)

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            attributes = event["Actor"]["Attributes"]
            if event["Action"] == "start":
                seen.starts[event["Actor"]["ID"]].append(event["timeNano"] / 1e9)
            if LABEL_HELPER not in attributes:
                seen.saw(event["Action"], event["Actor"]["ID"], attributes[LABEL_INSTANCE])
            elif event["Action"] == "start":
                seen.doubles.append(f"the helper of instance {attributes[LABEL_HELPER]}, which nothing may start")

    reader = threading.Thread(target=read, name="witness", daemon=True)
    reader.start()
    try:
        yield seen
    finally:
        process.terminate()
        process.wait(timeout=10)
        reader.join(timeout=10)
        assert process.stdout is not None
        process.stdout.close()
