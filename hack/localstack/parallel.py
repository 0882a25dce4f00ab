"""Independent steps at the same time, stopped together when one fails or the user interrupts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from localstack.processes import Supervisor
from localstack.progress import cancel_steps


def run(supervisor: Supervisor, tasks: Sequence[Callable[[], object]]) -> None:
    """Runs all tasks; the first failure (or Ctrl-C) ends commands and children of the others, then is raised."""
    pool = ThreadPoolExecutor(max_workers=max(1, len(tasks)))
    try:
        for future in as_completed([pool.submit(task) for task in tasks]):
            future.result()
    except BaseException as error:  # Ctrl-C too: threads come back only when what they wait for has ended
        # Stopping the others makes them fail as well; only the first failure is worth telling.
        first = supervisor.fail(error)
        cancel_steps()
        supervisor.close()
        if first is error:
            raise
        raise first from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
