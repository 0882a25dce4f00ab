"""A running local stack for e2e tests: objects by kubectl, containers by docker, rows by SQL, calls by the SDK."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, cast

import psycopg

from localstack import agent, quickstart
from localstack.kubernetes import Manifest
from localstack.progress import SetupError
from localstack.quickstart import Target
from localstack.stack import LocalStack
from support.conditions import check_conditions
from support.hosts.state_files import records_in
from support.kubernetes.api import KubeApi, api_of, path_of
from support.poll import until
from toolbox_dtma.engine.names import LABEL_HOST, LABEL_INSTANCE


@dataclass(frozen=True, slots=True)
class World:
    """What a person could look at, in one place."""

    stack: LocalStack

    @property
    def api(self) -> KubeApi:
        """The API server, asked as admin."""
        return api_of(self.stack.parts.cluster.admin_kubeconfig)

    def find(self, target: Target) -> Manifest | None:
        """The live object with its conditions checked, or None."""
        body = self.api.find(path_of(target.kind, target.namespace, target.name))
        if body is not None:
            check_conditions(body)
        return body

    def status(self, target: Target) -> dict[str, Any]:
        """The object's status; empty while there is none."""
        body = self.find(target)
        return cast("dict[str, Any]", (body or {}).get("status") or {})

    def await_status(self, target: Target, seconds: float = 60.0, **expected: object) -> dict[str, Any]:
        """The status once each named member has the expected value."""

        def fits(status: dict[str, Any]) -> bool:
            return all(status.get(name) == value for name, value in expected.items())

        return until(f"{target.resource} {expected}", lambda: self.status(target), fits, seconds=seconds)

    def await_condition(
        self, target: Target, type_: str, status: str, reason: str | None = None, seconds: float = 60.0
    ) -> dict[str, Any]:
        """The condition once it is as expected for the object's current generation."""

        def look() -> tuple[int, list[dict[str, Any]]]:
            body = self.find(target) or {}
            return body.get("metadata", {}).get("generation", 0), body.get("status", {}).get("conditions", [])

        def matching(seen: tuple[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
            generation, conditions = seen
            return [
                c
                for c in conditions
                if c["type"] == type_
                and c["status"] == status
                and c.get("observedGeneration") == generation
                and reason in (None, c["reason"])
            ]

        return matching(
            until(f"{target.resource} {type_}={status}", look, lambda s: bool(matching(s)), seconds=seconds)
        )[0]

    def condition(self, target: Target, type_: str) -> dict[str, Any]:
        """The condition as it is now."""
        conditions = cast("list[dict[str, Any]]", self.status(target).get("conditions", []))
        return next(condition for condition in conditions if condition["type"] == type_)

    def patch(self, target: Target, patch: dict[str, Any]) -> None:
        """A merge patch, as a person would make it."""
        text = json.dumps(patch)
        self.stack.parts.cluster.kubectl("patch", target.resource, "-n", target.namespace, "--type=merge", "-p", text)

    def secret(self, namespace: str, name: str) -> dict[str, str] | None:
        """A Secret's data, decoded; None if it is not there."""
        found = self.api.find(f"/api/v1/namespaces/{namespace}/secrets/{name}")
        return None if found is None else quickstart.decoded(found)

    def call(self, secret: dict[str, str], tool: str, arguments: dict[str, Any]) -> agent.Answer:
        """One tool call with nothing but a connection's Secret. Raises `SetupError` when it fails."""
        with agent.readable_errors():
            return asyncio.run(agent.call(secret, tool, arguments))

    def refusal(self, secret: dict[str, str], tool: str, arguments: dict[str, Any]) -> str | None:
        """Why a call fails; None when it works."""
        try:
            self.call(secret, tool, arguments)
        except SetupError as error:
            return str(error)
        return None

    def containers(self, *, running_only: bool = False) -> list[str]:
        """Ids of the host's containers."""
        label = f"label=magictoolbox.dev/host={self.stack.host.host_id}"
        flags = () if running_only else ("--all",)
        return self.stack.parts.engine.docker("ps", "--quiet", "--no-trunc", *flags, "--filter", label).split()

    def networks(self) -> list[str]:
        """Ids of the host's networks."""
        label = f"label=magictoolbox.dev/host={self.stack.host.host_id}"
        return self.stack.parts.engine.docker("network", "ls", "--quiet", "--filter", label).split()

    def grants_on_disk(self) -> list[str]:
        """Names of the grant files the host keeps."""
        return sorted(path.name for path in (self.stack.host.state_dir / "grants").glob("*"))

    def containers_of(self, namespace: str) -> list[str]:
        """Ids of the host's containers, running or not, for servers of one namespace; and of those nobody wants."""
        records = records_in(self.stack.host.state_dir / "instances")
        wanted = {path.stem: record["desired"]["namespace"] for path, record in records.items()}
        label = f"label={LABEL_HOST}={self.stack.host.host_id}"
        shown = f'{{{{.ID}}}} {{{{.Label "{LABEL_INSTANCE}"}}}}'
        listed = self.stack.parts.engine.docker("ps", "--all", "--no-trunc", "--filter", label, "--format", shown)
        pairs = [line.split() for line in listed.splitlines()]
        return [container for container, instance in pairs if wanted.get(instance, namespace) == namespace]

    def grants_of(self, namespace: str) -> list[str]:
        """Names of the host's grant files for connections of one namespace."""
        records = records_in(self.stack.host.state_dir / "grants")
        return sorted(path.name for path, record in records.items() if record["grant"]["namespace"] == namespace)

    def grant(self, connection: Target) -> dict[str, Any]:
        """A connection's grant as the host holds it; empty if it holds none."""
        grants = (record["grant"] for record in records_in(self.stack.host.state_dir / "grants").values())
        key = (connection.namespace, connection.name)
        return next((grant for grant in grants if (grant["namespace"], grant["name"]) == key), dict[str, Any]())

    def open_rows(self, namespace: str) -> list[tuple[Any, ...]]:
        """Rows of a namespace's objects that are not closed."""
        tables = ("account_tool_instances", "agent_mcp_connections")
        # Not a way in: the namespace is one that the test made.
        selects = [
            f"SELECT '{table}', name FROM {table} WHERE deleted_at IS NULL AND namespace = '{namespace}'"  # noqa: S608
            for table in tables
        ]
        return self.rows(" UNION ALL ".join(selects))

    def events(self, target: Target) -> list[tuple[str, str, str]]:
        """(type, reason, text) of every Event about an object, oldest first."""
        found = self.api.request("GET", f"/apis/events.k8s.io/v1/namespaces/{target.namespace}/events")["items"]
        about = [
            event
            for event in found
            if event["regarding"]["kind"] == target.kind and event["regarding"]["name"] == target.name
        ]
        about.sort(key=lambda event: str(event.get("eventTime") or event.get("deprecatedFirstTimestamp")))
        return [(event["type"], event["reason"], event.get("note", "")) for event in about]

    def await_event(self, target: Target, reason: str, *, type_: str = "Warning", seconds: float = 30.0) -> str:
        """The text of an Event with this reason, once it is there."""

        def matching(seen: list[tuple[str, str, str]]) -> list[str]:
            return [text for kind, why, text in seen if (kind, why) == (type_, reason)]

        seen = until(
            f"{target.resource} has a {type_} {reason}",
            lambda: self.events(target),
            lambda seen: bool(matching(seen)),
            seconds=seconds,
        )
        return matching(seen)[-1]

    def rows(self, query: str, *, dsn: str | None = None) -> list[tuple[Any, ...]]:
        """Rows of the record, read the way the operator has to it unless `dsn` is another."""
        dsn = dsn or self.stack.operator.database_url or self.stack.parts.postgres.dsn()
        with psycopg.connect(dsn, options="-c search_path=magic_toolbox", connect_timeout=10) as connection:
            return connection.execute(query.encode()).fetchall()
