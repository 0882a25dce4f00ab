"""What a pinned hash approves: from the probe that showed its surface, and for as long as it is kept."""

from __future__ import annotations

from toolbox_dtma.approvals import MAX_IN_FORCE, MAX_SURFACES, Approvals
from toolbox_dtma.link.messages import Surface
from toolbox_dtma.readiness import Probed
from toolbox_dtma.state.records import ApprovalsRecord, ApprovedSurface
from toolbox_dtma.wire import ProbeReport, ToolSummary

NOTHING = ApprovalsRecord()


def pin(digit: str) -> str:
    return f"sha256:{digit * 64}"


def probed(hash_: str | None, *tools: tuple[str, str]) -> Probed:
    names, hashes = tuple(name for name, _ in tools), tuple(hash_ for _, hash_ in tools)
    report = ProbeReport(
        ok=True, tools=tuple(ToolSummary(name=name) for name in names[:256]), tools_total=len(names), tools_hash=hash_
    )
    return Probed(report, Surface(tools=names, hashes=hashes))


A, B, B2, ODD = ("a", "sha256:a"), ("b", "sha256:b"), ("b", "sha256:b2"), ("odd", "opaque:1")


def test_a_pin_of_the_present_surface_approves_all_of_it_but_what_has_no_hash() -> None:
    approvals = Approvals(NOTHING, probed(pin("1"), A, B, ODD))
    assert approvals.places([pin("1")]) == {pin("1"): (0, 1)}
    verdict = approvals.verdict(pin("1"))
    assert verdict is not None
    assert (verdict.known, verdict.hidden, verdict.hidden_total) == (True, ("odd",), 1)


def test_what_was_approved_stays_approved_when_other_tools_change() -> None:
    kept = Approvals(NOTHING, probed(pin("1"), A, B)).to_keep((pin("1"),))
    approvals = Approvals(kept, probed(pin("2"), B2, A))
    assert approvals.places([pin("1")]) == {pin("1"): (1,)}
    verdict = approvals.verdict(pin("1"))
    assert verdict is not None and (verdict.known, verdict.hidden) == (True, ("b",))
    assert approvals.to_keep((pin("1"),)) is kept


def test_a_pin_of_no_surface_that_was_seen_approves_nothing() -> None:
    approvals = Approvals(NOTHING, probed(pin("1"), A, B))
    assert approvals.of(pin("2")) is None
    assert approvals.places([pin("2")]) == {pin("2"): ()}
    verdict = approvals.verdict(pin("2"))
    assert verdict is not None and (verdict.known, verdict.hidden, verdict.hidden_total) == (False, ("a", "b"), 2)
    assert approvals.to_keep((pin("2"),)) is NOTHING


def test_a_name_that_is_defined_twice_is_hidden_unless_both_are_approved() -> None:
    kept = ApprovalsRecord(surfaces=(ApprovedSurface(hash=pin("1"), tools=("sha256:a", "sha256:b")),))
    verdict = Approvals(kept, probed(pin("2"), A, B, B2)).verdict(pin("1"))
    assert verdict is not None and (verdict.hidden, verdict.hidden_total) == (("b",), 2)


def test_without_a_pin_or_a_probe_there_is_nothing_to_say() -> None:
    assert Approvals(NOTHING, probed(pin("1"), A)).verdict(None) is None
    assert Approvals(NOTHING, None).verdict(pin("1")) is None
    assert Approvals(NOTHING, None).places([pin("1")]) == {pin("1"): ()}


def test_tools_of_a_probe_before_there_were_hashes_are_not_approved() -> None:
    old = Probed(ProbeReport(ok=True, tools=(ToolSummary(name="a"),), tools_total=1), Surface(tools=("a",)))
    verdict = Approvals(NOTHING, old).verdict(pin("1"))
    assert verdict is not None and (verdict.known, verdict.hidden) == (False, ("a",))


def test_the_last_approvals_are_kept_and_those_in_force_always() -> None:
    record = NOTHING
    for digit in "0123456789abcdef":
        record = Approvals(record, probed(pin(digit), (digit, f"sha256:{digit}"))).to_keep((pin("0"), pin(digit)))
    kept = [surface.hash for surface in record.surfaces]
    assert len(kept) == MAX_SURFACES and kept[0] == pin("0") and kept[-1] == pin("f")


def test_no_more_than_some_pins_are_in_force_and_the_own_one_is_among_them() -> None:
    pins = [pin(f"{n:02d}"[-1]) + str(n) for n in range(40)]
    places = Approvals(NOTHING, probed(pins[0], A)).places(pins)
    assert len(places) == MAX_IN_FORCE and places[pins[0]] == (0,)


def test_named_are_as_many_as_a_report_names() -> None:
    tools = [(f"t{n}", f"sha256:{n}") for n in range(900)]
    verdict = Approvals(NOTHING, probed(pin("1"), *tools)).verdict(pin("2"))
    assert verdict is not None and (len(verdict.hidden), verdict.hidden_total) == (256, 900)
