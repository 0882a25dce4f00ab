"""Many hosts in one process: real DTMAs behind their real API, with engines and gateway workers that do nothing.

`python -m support.bench.simulated_hosts FOLDER COUNT` makes host-0 … host-N below FOLDER, writes `hosts.json`
(what `init` of each has to be applied for, once all serve), and serves until SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from localstack.kubernetes import Manifest
from support.dtma.host import DtmaHost, FakeEngine
from support.dtma.worker import Answer, ScriptedWorker, connected
from toolbox_dtma.link.messages import ProbeRequest, ProbeResult, Surface
from toolbox_dtma.settings import Timings
from toolbox_dtma.wire import ContainerReport, ProbeReport, ServerInfo, ToolSummary

READY_FILE = "hosts.json"
TOOLS = tuple(
    ToolSummary(name=f"tool_{number}", description=f"Does the thing with the number {number}. " + "More about it. " * 8)
    for number in range(12)
)
"""As many, and with as much to say, as an ordinary server has."""


STARTED = datetime(2026, 1, 1, tzinfo=UTC)


class SimulatedEngine(FakeEngine):
    """Reports a container as Docker would."""

    def report(self, instance_id: str) -> ContainerReport:
        desired = self.wanted[instance_id].desired
        return ContainerReport(
            name=f"mtb-{desired.name}-{instance_id[:8]}-12345678",
            id=instance_id.replace("-", "") * 2,
            image=desired.image,
            image_digest=f"sha256:{instance_id.replace('-', '') * 2}",
            state="running",
            started_at=STARTED,
        )


def _works() -> Answer:
    report = ProbeReport(
        ok=True,
        protocol_version="2025-11-25",
        server_info=ServerInfo(name="simulated", version="1.0.0"),
        capabilities=("tools",),
        tools=TOOLS,
        tools_total=len(TOOLS),
    )
    surface = Surface(tools=tuple(tool.name for tool in TOOLS))

    def answer(request: ProbeRequest) -> ProbeResult:
        return ProbeResult(probe=request.probe, report=report, surface=surface)

    return answer


@dataclass(slots=True)
class SimulatedHosts:
    """The hosts of this process."""

    folder: Path
    count: int
    hosts: list[DtmaHost] = field(default_factory=list[DtmaHost])

    async def serve(self) -> None:
        """Start all, say so, and run until SIGTERM."""
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        async with AsyncExitStack() as stack:
            for number in range(self.count):
                # The product's own delays, heartbeats among them.
                host = DtmaHost(self.folder / f"host-{number}", engine=SimulatedEngine(), timings=Timings())
                self.hosts.append(host)
                await host.start()
                stack.push_async_callback(host.stop)
                await stack.enter_async_context(connected(ScriptedWorker(probes=_works()), host.socket_path))
            path = self.folder / READY_FILE
            draft = path.with_suffix(".new")
            draft.write_text(json.dumps([self._means(number) for number in range(self.count)]))
            draft.rename(path)
            await stop.wait()

    def _means(self, number: int) -> dict[str, str]:
        host = self.hosts[number]
        token, ca = ((host.state_dir / name).read_text() for name in ("token", "ca.crt"))
        return {"endpoint": f"https://127.0.0.1:{host.port}", "token": token.strip(), "ca": ca}


def toolboxes(namespace: str, means: list[dict[str, str]]) -> list[Manifest]:
    """A Toolbox with its Secret for each host, named host-0 …"""
    documents: list[Manifest] = []
    for number, each in enumerate(means):
        name = f"host-{number}"
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "stringData": {"token": each["token"], "ca.crt": each["ca"]},
        }
        toolbox = {
            "apiVersion": "magictoolbox.dev/v1alpha1",
            "kind": "Toolbox",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "endpoint": each["endpoint"],
                "gatewayURL": "https://gateway.example.com",
                "authSecretRef": {"name": name, "key": "token"},
                "caSecretRef": {"name": name, "key": "ca.crt"},
            },
        }
        documents += [secret, toolbox]
    return documents


if __name__ == "__main__":
    asyncio.run(SimulatedHosts(Path(sys.argv[1]), int(sys.argv[2])).serve())
