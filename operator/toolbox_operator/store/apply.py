"""One transaction's worth of changes: lock, decide, write, in the order of the foreign keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from toolbox_operator.store import queries
from toolbox_operator.store.api import Observation
from toolbox_operator.store.decide import Fence, Stored, decide, may_replace
from toolbox_operator.store.pending import Change, Closing, Event, Sweep
from toolbox_operator.store.records import Agent, Kind, Record, row_ids

Parameters = Mapping[str, Any]


class WrittenMeanwhile(Exception):
    """Another writer inserted a row between our look and our write: roll back and look again."""


async def write_changes(connection: AsyncConnection, changes: Sequence[Change], fence: Fence) -> None:
    """Upsert and close rows: toolboxes, instances, agents, connections."""
    agents: dict[str, Agent] = {}
    for kind in Kind:
        of_kind = [change for change in changes if change.record.kind is kind]
        if of_kind:
            agents |= await _write_kind(connection, kind, of_kind, fence)
    if agents:
        # Last, because only now it is known which connections are open.
        parameters = _closing_parameters(fence) | {"p_ids": sorted(agents)}
        await connection.execute(queries.close_unused_agents(chosen=True), parameters)


async def _write_kind(
    connection: AsyncConnection, kind: Kind, changes: Sequence[Change], fence: Fence
) -> Mapping[str, Agent]:
    """Answers the agents that the written connections belong to, by id."""
    by_id = await _lock(connection, kind, changes, fence)
    open_by_name = {
        (row.record.namespace, row.record.name): row
        for row in by_id.values()
        if row.closing is None and row.cluster_id == fence.cluster_id
    }
    replaced: list[str] = []
    updates: list[tuple[Stored, Stored]] = []
    inserts: list[Stored] = []
    agents: dict[str, Agent] = {}
    for change in changes:
        stored = by_id.get(change.record.id)
        wanted = decide(stored, change, fence)
        if wanted is None:
            continue
        holder = open_by_name.get((wanted.record.namespace, wanted.record.name))
        if wanted.closing is None and holder is not None and holder.record.id != wanted.record.id:
            if not may_replace(holder, fence):
                continue
            replaced.append(holder.record.id)
        if change.record.agent is not None:
            agents[change.record.agent.id] = change.record.agent
        if stored is None:
            inserts.append(wanted)
        elif stored != wanted:
            updates.append((stored, wanted))

    if agents:
        await _write_agents(connection, agents, fence)
    # What closes goes first, so that names are free; what closes by itself keeps its own reason.
    for closes in (True, False):
        rows = [_update(old, new) for old, new in updates if (new.closing is not None) is closes]
        if rows:
            await connection.execute(queries.update_row(kind), rows)
        if closes and replaced:
            parameters = _closing_parameters(fence) | {"p_ids": sorted(replaced)}
            await connection.execute(queries.close_replaced(kind), parameters)
    if inserts:
        result = await connection.execute(queries.insert_row(kind), [_columns(row) for row in inserts])
        if len(result.all()) != len(inserts):
            raise WrittenMeanwhile(kind.name)
    return agents


async def _lock(connection: AsyncConnection, kind: Kind, changes: Sequence[Change], fence: Fence) -> dict[str, Stored]:
    """Every row that the changes may touch, by id."""
    names = {
        "p_cluster_id": fence.cluster_id,
        "p_namespaces": [change.record.namespace for change in changes],
        "p_names": [change.record.name for change in changes],
    }
    ids = {"p_ids": [change.record.id for change in changes]}
    rows = [*await connection.execute(queries.lock_by_name(kind), names)]
    rows += await connection.execute(queries.lock_by_id(kind), ids)
    return {row.id: _stored(kind, row) for row in rows}


async def _write_agents(connection: AsyncConnection, agents: Mapping[str, Agent], fence: Fence) -> None:
    """Before the connections that refer to them."""
    parameters = [
        {
            "p_id": agent.id,
            "p_cluster_id": fence.cluster_id,
            "p_namespace": agent.namespace,
            "p_name": agent.name,
            "p_epoch": fence.epoch,
        }
        for agent in agents.values()
    ]
    await connection.execute(queries.upsert_agent(), parameters)


async def write_events(connection: AsyncConnection, events: Sequence[Event], cluster_id: str) -> None:
    """Append lifecycle events."""
    rows = [
        {
            "id": event.id,
            "cluster_id": cluster_id,
            "created_at": event.at,
            "object_kind": event.kind,
            "object": event.object,
            "type": event.type,
            "reason": event.reason,
            "message": event.message,
        }
        for event in events
    ]
    if rows:
        await connection.execute(queries.insert_event(), rows)


async def write_sweep(connection: AsyncConnection, sweep: Sweep, fence: Fence) -> int:
    """Close what the sweep does not keep; answers how many rows that were."""
    closed = 0
    parameters = _closing_parameters(replace(fence, at=sweep.at))
    for kind in reversed(Kind):
        result = await connection.execute(
            queries.sweep(kind), {**parameters, "p_keep": sorted(row_ids(sweep.keep[kind]))}
        )
        closed += result.rowcount
    result = await connection.execute(queries.close_unused_agents(chosen=False), parameters)
    return closed + result.rowcount


def _closing_parameters(fence: Fence) -> dict[str, Any]:
    return {"p_cluster_id": fence.cluster_id, "p_epoch": fence.epoch, "p_at": fence.at}


def _stored(kind: Kind, row: Row[Any]) -> Stored:
    columns = row._mapping  # pyright: ignore[reportPrivateUsage] -- the public name of this property, despite its underscore
    observed = columns["boot_id"] is not None
    return Stored(
        record=Record(
            kind=kind,
            id=columns["id"],
            uid=columns["uid"] if kind is Kind.INSTANCE else columns["id"],
            namespace=columns["namespace"],
            name=columns["name"],
            generation=columns["spec_generation"],
            spec={name: columns[name] for name in queries.SPEC[kind]},
            verdict={name: columns[name] for name in queries.VERDICT[kind]},
            observation=Observation(columns["boot_id"], columns["observed_seq"]) if observed else None,
            observed={name: columns[name] for name in queries.OBSERVED[kind]},
        ),
        cluster_id=columns["cluster_id"],
        epoch=columns["epoch"],
        closing=Closing(columns["deleted_at"], columns["delete_reason"]) if columns["deleted_at"] else None,
    )


def _columns(row: Stored) -> Parameters:
    record, observation, closing = row.record, row.record.observation, row.closing
    columns: dict[str, Any] = {
        "id": record.id,
        "uid": record.uid,
        "cluster_id": row.cluster_id,
        "namespace": record.namespace,
        "name": record.name,
        "spec_generation": record.generation,
        "boot_id": observation.boot_id if observation else None,
        "observed_seq": observation.seq if observation else None,
        "epoch": row.epoch,
        "deleted_at": closing.at if closing else None,
        "delete_reason": closing.reason if closing else None,
        **record.spec,
        **record.observed,
        **record.verdict,
    }
    return {name: columns[name] for name in queries.columns_of(record.kind)}


def _update(old: Stored, new: Stored) -> Parameters:
    """The new row's columns, and whether anything that people see differs from the old ones."""
    before, after = _columns(old), _columns(new)
    changed = any(before[name] != after[name] for name in after if name != "epoch")
    return {**{f"p_{name}": value for name, value in after.items()}, "p_changed": changed}
