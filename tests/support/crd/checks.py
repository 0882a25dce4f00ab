"""The checks that hold on every API server."""

from __future__ import annotations

import json

from support.crd.accepted_cases import AcceptedCase
from support.crd.api import Answer, Api, collection
from support.crd.cases import Manifest, edited, valid
from support.crd.rule_cases import RuleCase
from support.crd.schema_cases import SchemaCase
from support.crd.statuses import STATUSES, with_empty_texts
from toolbox_operator.api.meta import Kind
from toolbox_operator.api.parse import parse_status


def update(api: Api, namespace: str, kind: Kind, before: Manifest, after: Manifest) -> Answer:
    """Create an object, replace it, delete it; the answer to the replacement."""
    path = collection(kind, namespace)
    created = api.create(path, before)
    assert created.accepted, created.message
    here = f"{path}/{before['metadata']['name']}"
    try:
        version = created.body["metadata"]["resourceVersion"]
        return api.replace(here, edited(after, {"metadata.resourceVersion": version}))
    finally:
        api.delete(here)


def submit(api: Api, namespace: str, case: RuleCase | AcceptedCase) -> Answer:
    """The server's answer to a case: to its creation (dry run), or to the update it stands for."""
    base = valid(case.kind, namespace=namespace)
    after = edited(base, case.edits)
    if not case.update:
        return api.create(collection(case.kind, namespace), after, dry_run=True)
    before = edited(base, case.before) if isinstance(case, RuleCase) else base
    return update(api, namespace, case.kind, before, after)


def check_schema_case(api: Api, namespace: str, case: SchemaCase) -> None:
    """The mistake is refused with the message; by a server that drops unknown fields it is dropped."""
    body = edited(valid(case.kind, namespace=namespace), case.edits)
    answer = api.create(collection(case.kind, namespace), body, dry_run=True)
    if case.served is None and not api.strict:
        assert answer.accepted, answer.message
        assert case.strict is not None
        field = case.strict.split('"')[1].rsplit(".", 1)[1]
        assert f'"{field}"' not in json.dumps(answer.body["spec"]), "the unknown field was stored"
        return
    assert not answer.accepted, f"accepted: {answer.body}"
    expected = case.served or case.strict
    if case.older is not None and not api.strict:
        expected = case.older
    assert expected is not None
    assert expected in answer.message, answer.message


def check_status_survives(api: Api, namespace: str, kind: Kind) -> None:
    """A status with every field set is stored whole: nothing of it is unknown to the schema."""
    path = collection(kind, namespace)
    created = api.create(path, valid(kind, "whole-status", namespace))
    assert created.accepted, created.message
    here = f"{path}/whole-status"
    try:
        status = STATUSES[kind]
        written = status.model_dump(mode="json", by_alias=True)
        assert all(value is not None for value in written.values()), "the example must set every field"
        stored = api.replace(f"{here}/status", {**created.body, "status": written})
        assert stored.accepted, stored.message
        assert stored.body["status"] == written
        assert parse_status(type(status), stored.body["status"]) == status
        emptied = with_empty_texts(written)
        stored = api.replace(f"{here}/status", {**stored.body, "status": emptied})
        assert stored.accepted, stored.message
        assert stored.body["status"] == emptied
    finally:
        api.delete(here)
