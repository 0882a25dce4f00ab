"""The life of a Toolbox, a server and a connection in steps, each of which may be cut short by the operator's end."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import httpx

from localstack.kubernetes import Manifest
from support import manifests
from support.operator_crashes.launcher import Launcher, Write
from support.operator_crashes.operator import Order
from support.operator_crashes.world import PLURALS, CrashWorld, Look
from support.poll import until
from toolbox_operator.api.meta import ANNOTATION_ROTATE, ANNOTATION_ROTATED, Kind

SERVER, CONNECTION, SECRET = "time", "bot", "bot-mcp"
PAUSE = 1.5
"""Seconds without a write after which an undisturbed step is over."""
REFERENCE_PAUSE = 3.0
"""The same where every other life is compared with what there is then."""

Secret = dict[str, str]


def speak(secret: Secret, tool: str) -> str:
    """One conversation with nothing but a connection's Secret: the answer's text, or why it was refused."""
    tls = ssl.create_default_context(cadata=secret["ca.crt"])
    headers = {"Authorization": f"Bearer {secret['token']}", "Accept": "application/json, text/event-stream"}
    client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "crash", "version": "1"}}
    called = {"name": tool, "arguments": {"said": "hello"}}
    with httpx.Client(verify=tls, timeout=15, trust_env=False, headers=headers) as http:
        for method, params in (("initialize", client), ("tools/call", called)):
            message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            answer = http.post(secret["url"], json=message)
            if answer.status_code != 200:
                return f"refused: {answer.status_code}"
            if "error" in answer.json():
                return f"refused: {answer.json()['error']['message']}"
    return str(answer.json()["result"]["content"][0]["text"])


@dataclass
class Site:
    """Where lives are lived."""

    world: CrashWorld
    launcher: Launcher
    toolbox: Sequence[Manifest]
    """What `init` printed: the Toolbox and its Secrets."""
    images: tuple[str, str]
    held: Secret = field(default_factory=Secret)
    """The connection's Secret as an agent last read it."""

    def patch_server(self, **spec: Any) -> None:
        """Edits the server."""
        self.world.api.patch(Kind.MCP_SERVER, self.world.namespace, SERVER, {"spec": spec})

    def patch_connection(self, **patch: Any) -> None:
        """Edits the connection."""
        self.world.api.patch(Kind.CONNECTION, self.world.namespace, CONNECTION, patch)

    def read_secret(self) -> Secret:
        """As an agent that starts now."""
        secret = self.world.secret(SECRET)
        assert secret is not None
        self.held = secret
        return secret


@dataclass(frozen=True, slots=True)
class Step:
    """Something a person does, and what must have come of it."""

    name: str
    do: Callable[[Site], None]
    reached: Callable[[Look], bool]
    check: Callable[[Site], None]


def only(look: Look, part: str, **members: object) -> dict[str, Any]:
    """The one item of a part with these members; empty if there is none."""
    found = [item for item in look[part] if all(item.get(name) == value for name, value in members.items())]
    return found[0] if len(found) == 1 else {}


def status_of(look: Look, kind: Kind) -> dict[str, Any]:
    """The status of the one object of a kind; empty if there is none."""
    return cast("dict[str, Any]", only(look, "objects", kind=str(kind)).get("status") or {})


def phases(look: Look) -> tuple[str, ...]:
    """Of Toolbox, server and connection."""
    return tuple(status_of(look, kind).get("phase", "") for kind in (Kind.TOOLBOX, Kind.MCP_SERVER, Kind.CONNECTION))


def create(site: Site) -> None:
    """Apply everything."""
    namespace = site.world.namespace
    server = manifests.quick_server(namespace, SERVER, site.images[0], env=[{"name": "VERSION", "value": "1"}])
    for body in (*site.toolbox, server, manifests.connection(namespace, CONNECTION, SERVER)):
        site.world.api.create(body)


def update(site: Site) -> None:
    """Another image, another value, fewer tools."""
    site.patch_server(image=site.images[1], env=[{"name": "VERSION", "value": "2"}])
    site.patch_connection(spec={"expose": {"tools": {"allow": ["echo"]}}})


def rotate(site: Site) -> None:
    """A new token."""
    site.patch_connection(metadata={"annotations": {ANNOTATION_ROTATE: "1"}})


def switch_off(site: Site) -> None:
    """No agent, no process."""
    site.patch_connection(spec={"active": False})
    site.patch_server(state="Stopped")


def switch_on(site: Site) -> None:
    """Both again."""
    site.patch_server(state="Running")
    site.patch_connection(spec={"active": True})


def start(site: Site) -> None:
    """Another operator, once it is at work or has ended: it keeps the record and has the host, if there is one."""
    launcher, world, since = site.launcher, site.world, site.launcher.position()

    def at_work() -> bool:
        if not launcher.running() or _wrote(launcher, since, "host configure"):
            return True
        return _wrote(launcher, since, "commit partitions") and not world.api.list("toolboxes", world.namespace)

    launcher.start()
    until("at work", at_work, seconds=60)


def _wrote(launcher: Launcher, since: int, kind: str) -> bool:
    return any(kind in write.kinds for write in launcher.writes(since))


def restart(site: Site) -> None:
    """The operator ends while nothing is to be done, and another one starts."""
    site.launcher.kill()
    start(site)


def delete(site: Site) -> None:
    """`kubectl delete -f` of everything, the host's Secrets included."""
    world = site.world
    for body in site.toolbox:
        if body["kind"] == "Secret":
            world.api.delete("secrets", world.namespace, body["metadata"]["name"], group="")
        else:
            world.api.delete(PLURALS[Kind.TOOLBOX], world.namespace, body["metadata"]["name"])
    world.api.delete(PLURALS[Kind.MCP_SERVER], world.namespace, SERVER)
    world.api.delete(PLURALS[Kind.CONNECTION], world.namespace, CONNECTION)


def works(site: Site) -> None:
    """An agent that reads the Secret now is answered."""
    assert speak(site.read_secret(), "echo") == '{"said": "hello"}'


def works_narrowed(site: Site) -> None:
    """What is still allowed works, what is not any more is refused."""
    works(site)
    assert speak(site.held, "whoami").startswith("refused: ")


def works_anew(site: Site) -> None:
    """With the new token only."""
    before = site.held
    works(site)
    assert site.held["token"] != before["token"]
    assert speak(before, "echo") in ("refused: 401", "refused: 429")


def refused(site: Site) -> None:
    """The Secret that the agent has is of no use."""
    assert speak(site.held, "echo") in ("refused: 401", "refused: 429")


def connected(look: Look) -> bool:
    """Everything is as specified."""
    return phases(look) == ("Ready", "Active", "Connected")


def updated(look: Look) -> bool:
    """The new server, with the new spec."""
    status = status_of(look, Kind.MCP_SERVER)
    return connected(look) and status["serverInfo"]["version"] == "2" and status["observedGeneration"] == 2


def rotated(look: Look) -> bool:
    """The new token alone is accepted."""
    secret = only(look, "secrets", name=SECRET)
    annotations = cast("dict[str, str]", secret.get("annotations") or {})
    done = annotations.get(ANNOTATION_ROTATED) == "1" and "token-next" not in secret["keys"]
    return connected(look) and done and len(look["grants"][0]["grant"]["credentials"]) == 1


def stopped(look: Look) -> bool:
    """Nothing runs, nobody is let in."""
    quiet = not any(container["Running"] for container in look["containers"])
    return phases(look) == ("Ready", "Stopped", "Disconnected") and quiet


def gone(look: Look) -> bool:
    """Nothing is left, but closed rows."""
    left = [name for name, items in look.items() if items and name != "rows"]
    return not left and len(look["rows"]) == 4 and all(row.get("closed") for row in look["rows"])


STEPS = (
    Step("create", create, connected, works),
    Step("update", update, updated, works_narrowed),
    Step("rotate", rotate, rotated, works_anew),
    Step("switch off", switch_off, stopped, refused),
    Step("switch on", switch_on, connected, works),
    Step("restart", restart, connected, works),
    Step("delete", delete, gone, refused),
)


def undisturbed(site: Site, step: Step) -> tuple[Look, list[Write]]:
    """Does a step with an operator that lives on: the world it ends in, and every write on the way."""
    launcher, world = site.launcher, site.world
    launcher.order(Order())
    begin = launcher.position()
    step.do(site)
    look = world.await_steady(step.reached, launcher.position, steady=REFERENCE_PAUSE)
    assert look is not None
    assert launcher.running()
    step.check(site)
    return look, launcher.writes(begin)
