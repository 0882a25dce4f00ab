"""`make prepare`: gets and builds everything that demo and tests need, into the cache, with progress on the screen."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from localstack import (
    clients,
    docker,
    images,
    kube_binaries,
    kubernetes,
    parallel,
    postgres,
    recipes,
    registry,
    runtime,
)
from localstack.host import GATEWAY_USER
from localstack.progress import SetupError, say
from localstack.stack import check_machine, workspace


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM means what Ctrl-C means."""
    raise KeyboardInterrupt


def main() -> int:
    """Prepares all parts at the same time."""
    signal.signal(signal.SIGTERM, interrupt)
    try:
        check_machine()
        with workspace() as supervisor:

            def control_plane() -> None:
                kubernetes.find_kubectl()
                if not os.environ.get(kubernetes.CLUSTER_VARIABLE):
                    kube_binaries.find()

            def containers() -> None:
                engine = docker.ensure(supervisor)
                registry.program()

                def servers() -> None:
                    for name in recipes.SERVERS:
                        images.built(engine, name)

                quickstart = [lambda name=name: images.prepare(supervisor, engine, name) for name in recipes.QUICKSTART]
                parallel.run(supervisor, [*quickstart, servers])

            def python() -> None:
                postgres.binaries()
                runtime.for_user(GATEWAY_USER)

            parallel.run(supervisor, [control_plane, containers, python, clients.prepare])
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    say("everything is prepared")
    return 0


if __name__ == "__main__":
    sys.exit(main())
