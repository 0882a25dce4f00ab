"""The world that a crash must not change: everything outside a process of ours, without what is random in it.

Two lives that ended in the same world give equal `look`s. Ids, tokens and times are replaced by what they stand for,
so that a reference to the wrong object, or a hash of a token that is no longer valid, still shows.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import psycopg
from psycopg.rows import dict_row

from localstack.docker import SOCKET
from localstack.host import Host
from localstack.kubernetes import Cluster, Manifest
from localstack.processes import Command, Supervisor
from support.conditions import check_conditions
from toolbox_dtma.engine.names import LABEL_HOST
from toolbox_operator.api.meta import API_VERSION, GROUP, Kind

Look = dict[str, Any]

PLURALS = {Kind.TOOLBOX: "toolboxes", Kind.MCP_SERVER: "mcpservers", Kind.CONNECTION: "agentmcpconnections"}
TABLES = ("account_tool_environments", "account_tool_instances", "agents", "agent_mcp_connections", "lifecycle_events")
STEADY = 0.3
"""Seconds without a write after which a world counts as settled."""
_NOT_COMPARED = ("cluster_id", "created_at", "updated_at", "epoch", "boot_id", "observed_seq")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)")
_CONTAINER_NAME = re.compile(r"\b(mtb-[a-z0-9-]+?)-[0-9a-f]{8}-[0-9a-f]{8}\b")
_CONFIG = ("Image", "Env", "Cmd", "Entrypoint", "User", "Labels")
_HOST_CONFIG = (
    "Memory", "NanoCpus", "PidsLimit", "ReadonlyRootfs", "CapDrop", "SecurityOpt", "Tmpfs", "Init", "RestartPolicy",
)  # fmt: skip


class LeftBehind(AssertionError):
    """A host has something of an object that no longer exists."""


class Api:
    """Kubernetes as admin, with plain requests: fast enough to look often."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def list(self, plural: str, namespace: str, *, group: str = f"{GROUP}/v1alpha1") -> list[Manifest]:
        """The objects of one kind; `group` "" is the core group."""
        answer = self._http.get(self._path(group, namespace, plural))
        answer.raise_for_status()
        return cast("list[Manifest]", answer.json()["items"])

    def create(self, body: Manifest) -> None:
        """As `kubectl create`."""
        plural = PLURALS[Kind(body["kind"])] if body["kind"] in PLURALS else f"{body['kind'].lower()}s"
        group = "" if body["apiVersion"] == "v1" else body["apiVersion"]
        self._http.post(self._path(group, body["metadata"]["namespace"], plural), json=body).raise_for_status()

    def patch(self, kind: Kind, namespace: str, name: str, patch: dict[str, Any]) -> None:
        """A merge patch."""
        path = f"{self._path(API_VERSION, namespace, PLURALS[kind])}/{name}"
        headers = {"Content-Type": "application/merge-patch+json"}
        self._http.patch(path, content=json.dumps(patch), headers=headers).raise_for_status()

    def delete(self, plural: str, namespace: str, name: str, *, group: str = API_VERSION) -> None:
        """As `kubectl delete --wait=false`; one that is gone already is fine."""
        answer = self._http.delete(f"{self._path(group, namespace, plural)}/{name}")
        if answer.status_code != 404:
            answer.raise_for_status()

    def _path(self, group: str, namespace: str, plural: str) -> str:
        root = f"/apis/{group}" if group else "/api/v1"
        return f"{root}/namespaces/{namespace}/{plural}"


@dataclass
class CrashWorld:
    """One namespace of a cluster, one host, and the record, as they are now."""

    api: Api
    engine: httpx.Client
    host: Host
    record: psycopg.Connection[dict[str, Any]] | None
    namespace: str
    _names: dict[str, str] = field(default_factory=dict[str, str])
    """What the ids of this life stand for."""
    _tokens: list[str] = field(default_factory=list[str])

    def begin(self) -> None:
        """A new life: objects of earlier ones are no longer known, and must all be closed in the record."""
        self._names.clear()
        self._tokens.clear()

    def look(self) -> Look:
        """Everything that is compared. Raises `LeftBehind`, or what `check_conditions` raises, at once."""
        held = self._held()
        bodies = {kind: self.api.list(plural, self.namespace) for kind, plural in PLURALS.items()}
        self._refuse_leftovers(held, bodies)
        secrets = self.api.list("secrets", self.namespace, group="")
        containers, networks = self._containers(), self._networks()
        for kind, items in bodies.items():
            for body in items:
                check_conditions({**body, "kind": str(kind)})
                self._names[body["metadata"]["uid"]] = f"<{kind} {body['metadata']['name']}>"
                status = cast("dict[str, Any]", body.get("status") or {})
                if "agentId" in status:
                    self._names[status["agentId"]] = "<agent>"
        current = self._tokens_of(secrets)
        seen: Look = {
            "objects": [_object(body, str(kind)) for kind, items in bodies.items() for body in items],
            "secrets": [_secret(body) for body in secrets],
            "containers": [_container(item) for item in containers],
            "networks": [{"Name": item["Name"], "Labels": item["Labels"]} for item in networks],
            "instances": [_without(item, "version") for item in self._files("instances")],
            "grants": [_without(item, "version") for item in self._files("grants")],
            "rows": self._rows(),
        }
        ids = {item["Id"]: "<container>" for item in containers} | {item["Id"]: "<network>" for item in networks}
        return self._generalised(seen, ids, current)

    def events(self) -> set[tuple[str, str, str]]:
        """(kind, type, reason) of the Events about this life's objects."""
        found = self.api.list("events", self.namespace, group="events.k8s.io/v1")
        return {
            (event["regarding"]["kind"], event["type"], event["reason"])
            for event in found
            if event["regarding"].get("uid") in self._names
        }

    def secret(self, name: str) -> dict[str, str] | None:
        """A Secret's data, decoded; None if it is not there."""
        for body in self.api.list("secrets", self.namespace, group=""):
            if body["metadata"]["name"] == name:
                return _decoded(body)
        return None

    def await_steady(
        self,
        good: Callable[[Look], bool],
        progress: Callable[[], object],
        *,
        ended: Callable[[], bool] = lambda: False,
        seconds: float = 60.0,
        steady: float = STEADY,
        explain: Callable[[Look], str] = repr,
    ) -> Look | None:
        """The world once it is `good` and, for a moment, stays so and nobody writes; None when `ended` comes first.

        `progress` changes whenever the process under test writes.
        """
        deadline = time.monotonic() + seconds
        pause = threading.Event()
        calm: tuple[float, object, Look] | None = None
        while not ended():
            before = progress()
            seen = self.look()
            now = time.monotonic()
            if not good(seen) or progress() != before:
                calm = None
            elif calm is None or calm[1:] != (before, seen):
                calm = (now, before, seen)
            elif now - calm[0] >= steady:
                return seen
            if now >= deadline:
                raise AssertionError(f"another world after {seconds:.0f}s:\n{explain(seen)}")
            pause.wait(0.05)
        return None

    def await_same(
        self,
        expected: Look,
        progress: Callable[[], object],
        *,
        ended: Callable[[], bool] = lambda: False,
        seconds: float = 60.0,
        steady: float = STEADY,
    ) -> bool:
        """True once the world is as expected and steady, False when `ended` comes first. Fails with the difference."""
        found = self.await_steady(
            lambda seen: seen == expected,
            progress,
            ended=ended,
            seconds=seconds,
            steady=steady,
            explain=lambda seen: difference(expected, seen),
        )
        return found is not None

    def _held(self) -> set[tuple[str, str]]:
        """(kind, uid) of whatever the host holds for objects of this namespace, and is not told to remove."""
        instances = [(Kind.MCP_SERVER, item["desired"]) for item in self._files("instances") if not item["deleting"]]
        grants = [(Kind.CONNECTION, {**item["grant"], "uid": item["uid"]}) for item in self._files("grants")]
        return {(str(kind), item["uid"]) for kind, item in (*instances, *grants) if item["namespace"] == self.namespace}

    def _refuse_leftovers(self, before: set[tuple[str, str]], bodies: dict[Kind, list[Manifest]]) -> None:
        """What is held before and after a list that lacks its object outlived it."""
        present = {(str(kind), body["metadata"]["uid"]) for kind, items in bodies.items() for body in items}
        left = (before & self._held()) - present
        if left:
            raise LeftBehind(f"the host holds {sorted(left)}, whose objects are gone")

    def _files(self, folder: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for path in sorted((self.host.state_dir / folder).glob("*.json")):
            try:
                found.append(json.loads(path.read_text()))
            except FileNotFoundError:
                continue  # removed between the two calls
        return found

    def _ask_engine(self, path: str, **query: str) -> Any:
        answer = self.engine.get(path, params=query)
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        return answer.json()

    def _containers(self) -> list[dict[str, Any]]:
        filters = json.dumps({"label": [f"{LABEL_HOST}={self.host.host_id}"]})
        listed = self._ask_engine("/containers/json", all="true", filters=filters)
        details = [self._ask_engine(f"/containers/{item['Id']}/json") for item in listed]
        return [item for item in details if item is not None]

    def _networks(self) -> list[dict[str, Any]]:
        filters = json.dumps({"label": [f"{LABEL_HOST}={self.host.host_id}"]})
        return cast("list[dict[str, Any]]", self._ask_engine("/networks", filters=filters))

    def _rows(self) -> list[dict[str, Any]]:
        if self.record is None:
            return []
        rows: list[dict[str, Any]] = []
        with self.record.transaction():
            exists = self.record.execute("SELECT to_regnamespace('magic_toolbox') IS NOT NULL AS there").fetchone()
            if exists is None or not exists["there"]:
                return []
            for table in TABLES:
                # Not a way in: the names are the constants above.
                found = self.record.execute(f"SELECT * FROM magic_toolbox.{table}".encode()).fetchall()  # noqa: S608
                rows += [row for item in found if (row := self._row(table, item)) is not None]
        return rows

    def _row(self, table: str, row: dict[str, Any]) -> dict[str, Any] | None:
        """A row as it is compared; None for one that was closed in an earlier life."""
        if table == "lifecycle_events":
            return (
                {"table": table, **_without(row, "id", *_NOT_COMPARED)} if str(row["object"]) in self._names else None
            )
        if row["deleted_at"] is None:
            return {"table": table, **_without(row, "deleted_at", "delete_reason", *_NOT_COMPARED)}
        if str(row["id"]) not in self._names:
            return None
        # How it closed depends on who was quicker, the removal or the sweep of the next process.
        return {"table": table, "id": row["id"], "name": row["name"], "closed": True}

    def _tokens_of(self, secrets: list[Manifest]) -> dict[str, str]:
        """What the tokens that are valid now, and their hashes, stand for."""
        current: dict[str, str] = {}
        for body in secrets:
            data = _decoded(body)
            owner = body["metadata"]["name"]
            for key in ("token", "token-next"):
                if data.get(key, "").startswith("mtb_"):
                    current[data[key]] = f"<{key} of {owner}>"
                    if data[key] not in self._tokens:
                        self._tokens.append(data[key])
        return {token: current.get(token, "<an earlier token>") for token in self._tokens}

    def _generalised(self, seen: Look, ids: dict[str, str], tokens: dict[str, str]) -> Look:
        text = json.dumps(seen, default=str)
        hashes = {hashlib.sha256(token.encode()).hexdigest(): f"sha256 of {name}" for token, name in tokens.items()}
        for value, name in {**self._names, **ids, **tokens, **hashes}.items():
            text = text.replace(value, name)
        text = _CONTAINER_NAME.sub(r"\1-<id>", _TIME.sub("<time>", text))
        parts = cast("dict[str, list[Any]]", json.loads(text))
        return {name: sorted(items, key=lambda item: json.dumps(item, sort_keys=True)) for name, items in parts.items()}


@contextmanager
def crash_world(
    supervisor: Supervisor, cluster: Cluster, host: Host, dsn: str | None, namespace: str, *, docker: Path = SOCKET
) -> Generator[CrashWorld]:
    """A `CrashWorld` with its connections, closed at the end."""
    socket = supervisor.folder / f"kubectl-{namespace}.sock"
    argv = [str(cluster.kubectl_path), "--kubeconfig", str(cluster.admin_kubeconfig)]
    proxy = supervisor.start(Command(f"kubectl-proxy-{namespace}", [*argv, "proxy", f"--unix-socket={socket}"]))
    proxy.wait_until(socket.exists, 15, "listening")
    with (
        httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://localhost", timeout=15) as api,
        httpx.Client(transport=httpx.HTTPTransport(uds=str(docker)), base_url="http://docker", timeout=30) as engine,
    ):
        record: psycopg.Connection[dict[str, Any]] | None = None
        if dsn is not None:
            record = psycopg.Connection[dict[str, Any]].connect(dsn, autocommit=True, row_factory=dict_row)
        try:
            yield CrashWorld(Api(api), engine, host, record, namespace)
        finally:
            if record is not None:
                record.close()
            proxy.stop()


def difference(expected: Look, seen: Look) -> str:
    """What differs, line by line."""
    before, after = (json.dumps(look, indent=1, sort_keys=True).splitlines() for look in (expected, seen))
    return "\n".join(difflib.unified_diff(before, after, "expected", "seen", lineterm="", n=4))


def _without(item: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in names}


def _metadata(body: Manifest) -> dict[str, Any]:
    metadata = body["metadata"]
    kept = ("name", "labels", "annotations", "finalizers", "generation", "ownerReferences")
    return {**{name: metadata.get(name) for name in kept}, "deleting": "deletionTimestamp" in metadata}


def _object(body: Manifest, kind: str) -> dict[str, Any]:
    return {"kind": kind, **_metadata(body), "spec": body["spec"], "status": body.get("status")}


def _secret(body: Manifest) -> dict[str, Any]:
    """Without its values, except what leads an agent to its server."""
    data = _decoded(body)
    return {"kind": "Secret", **_metadata(body), "keys": sorted(data), "url": data.get("url")}


def _decoded(secret: Manifest) -> dict[str, str]:
    data = cast("dict[str, str]", secret.get("data") or {})
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def _container(item: dict[str, Any]) -> dict[str, Any]:
    config, host_config, state = item["Config"], item["HostConfig"], item["State"]
    return {
        "Name": item["Name"],
        **{name: config.get(name) for name in _CONFIG},
        **{name: host_config.get(name) for name in _HOST_CONFIG},
        "Running": state["Running"],
        "Paused": state["Paused"],
        "Networks": sorted(item["NetworkSettings"]["Networks"]),
    }
