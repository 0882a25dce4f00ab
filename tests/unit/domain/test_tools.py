"""`ToolsChanged`: when it is there, what it says, and what is told in Events."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from support.reconcilers import observed
from toolbox_dtma.wire import InstanceReport, ProbeReport, ToolApproval, ToolSummary
from toolbox_operator.api.conditions import Condition, ConditionType
from toolbox_operator.api.mcpserver import MCPServerStatus, ToolStatus
from toolbox_operator.domain.conditions import Wanted, stamp
from toolbox_operator.domain.tools import News, news, tools_changed

H1, H2 = (f"sha256:{digit * 64}" for digit in "12")


def shown(**tools: str) -> tuple[ToolStatus, ...]:
    return tuple(ToolStatus(name=name, hash=f"sha256:{hash_}") for name, hash_ in tools.items())


def report(
    tools_hash: str | None, approval: ToolApproval | None = None, *, ok: bool = True, problem: str | None = None
) -> InstanceReport:
    probe = ProbeReport(
        ok=ok, tools_hash=tools_hash, tools_total=2, tools_problem=problem, tools=(ToolSummary(name="a"),)
    )
    base = observed.report()
    return base.model_copy(update={"observed": base.observed.model_copy(update={"probe": probe, "approval": approval})})


def status(tools_hash: str | None, generation: int | None = 1, *conditions: Condition, **tools: str) -> MCPServerStatus:
    return MCPServerStatus(
        tools_hash=tools_hash, tools_generation=generation, tools=shown(**tools), conditions=conditions
    )


def condition(wanted: Wanted) -> Condition:
    return stamp((), [wanted], 1, datetime(2026, 1, 1, tzinfo=UTC))[0]


def approval(*hidden: str, known: bool = True, hash_: str = H1) -> ToolApproval:
    return ToolApproval(hash=hash_, known=known, hidden=hidden, hidden_total=len(hidden))


def changed(before: MCPServerStatus, seen: InstanceReport, generation: int = 1, **tools: str) -> Wanted:
    wanted = tools_changed(before, shown(**tools), seen, generation)
    assert wanted is not None and (wanted.type, wanted.status) == (ConditionType.TOOLS_CHANGED, "True")
    return wanted


def test_first_tools_and_the_same_tools_are_no_change() -> None:
    assert tools_changed(status(None, None), shown(a="1"), report(H1), 1) is None
    assert tools_changed(status(H1, 1, a="1"), shown(a="1"), report(H1), 1) is None


def test_a_change_under_an_unedited_spec_is_told_with_names_and_the_hash_to_set() -> None:
    wanted = changed(status(H1, 1, a="1", b="1", c="1"), report(H2), a="1", b="2", d="1")
    assert wanted.reason == "ToolsChanged"
    assert "added d; removed c; changed b" in wanted.message and f"approvedHash to {H2}" in wanted.message


def test_it_stays_until_the_next_edit() -> None:
    first = changed(status(H1, 1, a="1"), report(H2), a="2")
    before = status(H2, 1, condition(first), a="2")
    assert changed(before, report(H2), a="2").message == first.message
    assert tools_changed(before, shown(a="2"), report(H2), 2) is None


def test_other_tools_after_an_edit_are_what_was_asked_for() -> None:
    assert tools_changed(status(H1, 1, a="1"), shown(a="2"), report(H2), 2) is None


@pytest.mark.parametrize("seen", [report(None), report(H2, ok=False), observed.report(probe=None)])
def test_nothing_new_leaves_it_as_it_was(seen: InstanceReport) -> None:
    first = changed(status(H1, 1, a="1"), report(H2), a="2")
    assert changed(status(H2, 1, condition(first), a="2"), seen) == first
    assert tools_changed(status(H1, 1, a="1"), (), seen, 1) is None


def test_pinned_tools_that_are_the_approved_ones_need_no_word() -> None:
    assert tools_changed(status(H1, 1, a="1"), shown(a="1"), report(H1, approval()), 1) is None


def test_what_is_hidden_is_named_with_the_hash_that_accepts_it() -> None:
    wanted = changed(status(H1, 1, a="1"), report(H2, approval("a", "b")), 5)
    assert wanted.reason == "ToolsNotApproved"
    assert "a, b" in wanted.message and f"approvedHash to {H2}" in wanted.message


def test_a_hash_of_nothing_known_says_so() -> None:
    wanted = changed(status(H1, 1), report(H1, approval("a", "b", known=False, hash_=H2)))
    assert wanted.reason == "ToolsNotApproved"
    assert "none may be used" in wanted.message and H1 in wanted.message and H2 not in wanted.message


def test_approved_tools_that_are_gone_hide_nothing() -> None:
    wanted = changed(status(H1, 1), report(H2, approval()))
    assert wanted.reason == "ToolsChanged" and "gone" in wanted.message


def test_a_tool_that_can_never_be_approved_says_why() -> None:
    wanted = changed(status(H1, 1), report(H1, approval("odd"), problem="odd: a member is there twice"))
    assert wanted.reason == "ToolsNotApproved"
    assert "cannot be approved (odd: a member is there twice)" in wanted.message


def test_the_message_is_bounded_however_many_and_long_the_names_are() -> None:
    names = {f"{n}" + "x" * 250: "1" for n in range(256)}
    wanted = changed(status(H1, 1), report(H2), 1, **names)
    assert "and 248 more" in wanted.message and len(wanted.message) < 1024
    hidden = ToolApproval(hash=H1, known=True, hidden=tuple(names), hidden_total=900)
    assert "and 892 more" in changed(status(H1, 1), report(H2, hidden)).message


def told(before: MCPServerStatus, after: MCPServerStatus, *, pinned: bool = False) -> News | None:
    found = news(before, after, pinned=pinned)
    assert found is None or "sha256" not in found.note, "the note must be the same for a list that flaps"
    return found


def test_the_first_tools_and_unchanged_ones_are_no_news() -> None:
    assert told(status(None), status(H1, a="1")) is None
    assert told(status(H1, a="1"), status(H1, a="1")) is None
    assert told(status(H1, a="1"), status(None)) is None


def test_a_change_is_a_warning_only_if_nobody_asked_for_it() -> None:
    before = status(H1, 1, a="1")
    asked = told(before, status(H2, 2, a="2"))
    assert asked == News("Normal", asked.reason, "The tools changed: changed a.") if asked else False
    unasked = told(before, status(H2, 1, condition(changed(before, report(H2), a="2")), a="2"))
    assert unasked is not None and (unasked.type, unasked.reason) == ("Warning", "ToolsChanged")


def test_hidden_tools_are_warned_of_once_and_the_approval_is_told() -> None:
    before = status(H1, 1, a="1")
    hidden = condition(changed(before, report(H2, approval("a")), a="2"))
    after = status(H2, 1, hidden, a="2")
    warned = told(before, after, pinned=True)
    assert warned is not None and (warned.type, warned.reason) == ("Warning", "ToolsNotApproved")
    assert told(after, after, pinned=True) is None
    again = told(status(H2, 1, a="2"), after, pinned=True)
    assert again is not None and (again.type, again.reason) == ("Warning", "ToolsNotApproved")
    accepted = told(after, status(H2, 2, a="2"), pinned=True)
    assert accepted is not None and (accepted.type, accepted.reason) == ("Normal", "ToolsApproved")


def test_a_list_that_flaps_is_told_in_the_same_words_each_time() -> None:
    one, two = status(H1, 1, a="1"), status(H2, 1, a="2")
    third = status(f"sha256:{'3' * 64}", 1, a="3")
    assert told(one, two) == told(two, third) == told(third, one)
