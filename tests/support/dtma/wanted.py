"""What an operator asks a DTMA for: one instance, and one connection that may use it."""

from __future__ import annotations

from support.dtma.host import DtmaHost
from toolbox_dtma.wire import Credential, DesiredInstance, Grant
from toolbox_operator.hosts.api import HostSettings

INSTANCE = "0f2d3c4b-5a69-4788-9c0d-1e2f3a4b5c6d"
DESIRED = DesiredInstance(
    uid="uid-1",
    namespace="team-a",
    name="time",
    generation=1,
    inputs_hash="0" * 64,
    image="registry.example.com/mcp-time:1.4",
    port=3001,
    path="/mcp",
)
GRANT = Grant(
    namespace="team-a",
    name="bot-time",
    generation=1,
    instance=INSTANCE,
    agent="research-bot",
    credentials=(Credential(value="a" * 64),),
)


def settings_of(dtma: DtmaHost, token: str | None = None) -> HostSettings:
    """How an operator reaches it; `token` in place of the right one."""
    return HostSettings(
        endpoint=f"https://127.0.0.1:{dtma.port}",
        token=token or (dtma.state_dir / "token").read_text().strip(),
        gateway_url="https://toolbox.example.com:30443",
        ca_pem=(dtma.state_dir / "ca.crt").read_text(),
    )
