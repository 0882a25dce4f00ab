"""What a host and everybody around it can see, as plain data in which nothing differs from one run to the next."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPSConnection
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, cast

import httpx

from support.dtma_crashes.host import WORKERS, CrashHost
from toolbox_dtma.engine.models import Container
from toolbox_dtma.engine.names import LABEL_HOST, LABEL_POOL
from toolbox_dtma.engine.networks import SUBNET_PREFIX
from toolbox_dtma.wire import GrantReport, HostFacts, InstanceReport

Plain = dict[str, Any]

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_UNIQUE = re.compile(r"(mtb-[a-z0-9-]+-<\w+>-)[0-9a-f]{8}\b")
_CONTAINER = re.compile(r"\b[0-9a-f]{64}\b")
_ADDRESSES = ("IPAMConfig", "IPAddress", "IPPrefixLen", "Gateway")
_BRIDGE = "com.docker.network.bridge.name"
_IPV4 = re.compile(r"(?<![\w.])(\d+(?:\.\d+){3})(?:/(\d+))?(?![\w.])")


@dataclass(slots=True)
class Life:
    """Names of one life of the objects: they differ between lives, and stand for themselves in what is compared."""

    owner: str
    instance: str
    uid: str
    connection: str
    tokens: dict[str, str] = field(default_factory=dict[str, str])
    """By name."""
    contents: dict[str, str] = field(default_factory=dict[str, str])
    """Content hash last put, by connection."""
    others: dict[str, str] = field(default_factory=dict[str, str])
    """Anything else that has a name here."""

    def plain(self, text: str) -> str:
        """Text with this life's names replaced, and times."""
        names = {
            self.owner: "OWNER",
            self.instance: "INSTANCE",
            self.uid: "UID",
            self.connection: "CONNECTION",
            **self.others,
        }
        for value, name in names.items():
            text = text.replace(value, f"<{name}>").replace(f"-{value[:8]}-", f"-<{name}>-")
        text = _UNIQUE.sub(r"\1<unique>", text)
        return _TIME.sub("<time>", text)


class Onlooker:
    """Looks at one host from outside: engine, kernel, disk; and as an agent."""

    def __init__(self, crash: CrashHost, image_names: Mapping[str, str]) -> None:
        self._crash = crash
        self._image_names = image_names
        self._docker = httpx.Client(
            transport=httpx.HTTPTransport(uds="/var/run/docker.sock"), base_url="http://docker", timeout=30
        )
        self._trust = ssl.create_default_context(cafile=str(crash.host.ca_file))

    def close(self) -> None:
        """Close connections."""
        self._docker.close()

    # ------------------------------------------------------------------ engine
    def _engine(self, path: str, **filters: str) -> Any:
        params = {"all": "1", "filters": json.dumps({"label": [f"{k}={v}" for k, v in filters.items()]})}
        answer = self._docker.get(path, params=params if filters else None)
        answer.raise_for_status()
        return answer.json()

    def containers(self) -> list[Plain]:
        """Every container of the host, inspected."""
        label = {LABEL_HOST: self._crash.names.host_id}
        listed = self._engine("/containers/json", **label)
        return self._still_there(f"/containers/{item['Id']}/json" for item in listed)

    def networks(self) -> list[Plain]:
        """Every network of the host, inspected."""
        listed = self._engine("/networks", **{LABEL_HOST: self._crash.names.host_id})
        return self._still_there(f"/networks/{item['Id']}" for item in listed)

    def volumes(self) -> list[Plain]:
        """Every volume of the host, with the user that its directory belongs to."""
        listed = self._engine("/volumes", **{LABEL_HOST: self._crash.names.host_id})["Volumes"] or ()
        kept = ("Name", "Driver", "Labels", "Options")
        return [{key: item[key] for key in kept} | {"owner": _owner(Path(item["Mountpoint"]))} for item in listed]

    def _still_there(self, paths: Iterable[str]) -> list[Plain]:
        """Each of what was listed, but for what was removed since."""
        answers = [self._docker.get(path) for path in paths]
        return [cast(Plain, answer.raise_for_status().json()) for answer in answers if answer.status_code != 404]

    def inspect(self, container: str) -> Plain:
        """Any container of the engine."""
        return cast(Plain, self._engine(f"/containers/{container}/json"))

    # ------------------------------------------------------------------- agent
    def call(self, instance: str, token: str, tool: str) -> str:
        """One tool call straight to the gateway: `answered`, `refused`, or what else came."""
        connection = HTTPSConnection("127.0.0.1", self._crash.host.gateway_port, timeout=10, context=self._trust)
        body: Plain = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": {}}}
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        headers["Accept"] = "application/json, text/event-stream"
        try:
            connection.request("POST", f"/servers/{instance}/mcp", json.dumps(body).encode(), headers)
            answer = connection.getresponse()
            return _outcome(answer.status, answer.read())
        except (OSError, HTTPException) as error:
            return f"no answer: {type(error).__name__}"
        finally:
            connection.close()

    # ------------------------------------------------------------------- whole
    def world(
        self, life: Life, facts: HostFacts, instances: tuple[InstanceReport, ...], grants: tuple[GrantReport, ...]
    ) -> Plain:
        """Everything at once."""
        calls = {
            f"{name} {tool}": self.call(life.instance, token, tool)
            for name, token in life.tokens.items()
            for tool in ("echo", "whoami")
        }
        containers = self.containers()
        networks = self.networks()
        incarnations = {Container.model_validate(item).incarnation for item in containers}
        seen: Plain = {
            "containers": sorted((_container(item) for item in containers), key=str),
            "networks": sorted((_network(item) for item in networks), key=str),
            "volumes": sorted(self.volumes(), key=str),
            "firewall": self._firewall(),
            "files": self._files(life, incarnations),
            "instances": [_instance(item) for item in instances],
            "grants": [_grant(item, life) for item in grants],
            "workers current": facts.gateway.workers_current == facts.gateway.workers == WORKERS,
            "calls": calls,
        }
        return cast(Plain, json.loads(self._plain(life, unplaced(json.dumps(seen, default=str), networks))))

    def _plain(self, life: Life, text: str) -> str:
        for value, name in self._image_names.items():
            text = text.replace(value, f"<{name}>")
        return _CONTAINER.sub("<id>", life.plain(text))

    def _firewall(self) -> list[str]:
        lines: list[str] = []
        for program in ("iptables", "ip6tables"):
            listed = subprocess.run(
                [program, "--wait", "5", "-S"], check=True, capture_output=True, text=True, timeout=30
            )
            lines += [f"{program} {line}" for line in listed.stdout.splitlines() if self._crash.names.tag in line]
        return lines

    def _files(self, life: Life, incarnations: set[str]) -> Plain:
        seen: Plain = {}
        for folder in (self._crash.host.state_dir, self._crash.host.runtime_dir):
            for path in sorted(folder.rglob("*")):
                name = f"{folder.name}/{path.relative_to(folder)}"
                if path.is_file() and (content := _content(path, life, incarnations)) is not None:
                    key = f"{folder.name}/tombstones/{content['kind']}" if path.parent.name == "tombstones" else name
                    seen[key] = content
                elif not path.is_file():
                    seen[name] = "not a file"
        return seen


def unplaced(text: str, networks: Iterable[Plain]) -> str:
    """Text with each address of these networks by its place in the network, and bridges without their number.

    Which pool and which subnet a host takes depends on what else there is on the machine: other hosts of tests.
    """
    subnets: dict[IPv4Network, str] = {}
    pools: set[IPv4Network] = set()
    for network in networks:
        subnet, pool = IPv4Network(network["IPAM"]["Config"][0]["Subnet"]), IPv4Network(network["Labels"][LABEL_POOL])
        assert subnet.subnet_of(pool), f"{subnet} is not in the pool {pool}"
        subnets[subnet] = network["Name"]
        pools.add(pool)
        bridge = str(network["Options"][_BRIDGE])
        index = (int(subnet.network_address) - int(pool.network_address)) >> (32 - SUBNET_PREFIX)
        assert bridge.endswith(f"{index:03x}"), f"{bridge} has another number than {subnet} in {pool}"
        text = text.replace(bridge, f"{bridge[:-3]}<number>")

    def place(found: re.Match[str]) -> str:
        address, length = IPv4Address(found[1]), found[2]
        if length is not None and IPv4Network(found[0], strict=False) in pools:
            return f"<pool /{length}>"
        for subnet, name in subnets.items():
            if address in subnet:
                offset = int(address) - int(subnet.network_address)
                return f"<{name}>.{offset}" + (f"/{length}" if length else "")
        return found[0]

    return _IPV4.sub(place, text)


def _content(path: Path, life: Life, incarnations: set[str]) -> Plain | None:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        # Replaced or removed between the look at its folder and this one.
        return None
    if path.parent.name == "calls":
        # What agents called meanwhile; it has crash tests of its own.
        return None
    if path.suffix != ".json":
        # A temporary file of a fixed name is written over by the next one.
        return None if path.name == "engine.tmp" else {"bytes": len(raw)}
    content = cast(Plain, json.loads(raw))
    match path.name:
        case "boot.json":
            content["boot_id"] = "some"
        case "engine.json":
            # Made when there is first something to remember; an empty one says the same as none.
            if not content:
                return None
            for record in content["instances"].values():
                if "rested" in record:
                    record["rested"] = _when(record["rested"], incarnations)
        case "workers.json":
            content["workers"] = len(content["workers"])
        case _ if path.parent.name == "probed":
            content["incarnation"] = _when(content["incarnation"], incarnations)
        case _ if path.parent.name == "owners":
            return content if content["owner"] == life.owner else None
        case _ if path.parent.name == "departed":
            content["departed_at"] = "some"
            return content if content["uid"] in (life.connection, *life.others) else None
        case _ if path.parent.name == "tombstones":
            mine = content["uid"] in (life.uid, life.connection, *life.others)
            return content if mine else None
        case _:
            pass
    return content


def _when(incarnation: str, present: set[str]) -> str:
    return "present" if incarnation in present else "past"


def _owner(folder: Path) -> int | None:
    try:
        return folder.stat().st_uid
    except FileNotFoundError:
        # Removed since it was listed.
        return None


def _container(seen: Plain) -> Plain:
    networks = cast("dict[str, Plain]", seen["NetworkSettings"]["Networks"])
    return {
        "name": seen["Name"],
        "image": seen["Image"],
        "status": seen["State"]["Status"],
        "config": seen["Config"],
        "host config": seen["HostConfig"],
        "networks": {name: {key: found[key] for key in _ADDRESSES} for name, found in networks.items()},
    }


def _network(seen: Plain) -> Plain:
    kept = {key: seen[key] for key in ("Name", "Driver", "Internal", "IPAM", "Labels", "Options")}
    return kept | {"attached": len(seen["Containers"])}


def _instance(report: InstanceReport) -> Plain:
    return report.model_dump(mode="json", exclude={"observed": {"seq"}})


def _grant(report: GrantReport, life: Life) -> Plain:
    as_put = report.content_hash == life.contents.get(report.uid)
    return report.model_dump(mode="json", exclude={"content_hash"}) | {"content as put": as_put}


def _outcome(status: int, body: bytes) -> str:
    if status in (401, 403, 429):
        return "refused"
    if status != 200:
        return f"status {status}"
    answer = cast(Plain, json.loads(body))
    return "answered" if "result" in answer else f"error {answer['error']['code']}"
