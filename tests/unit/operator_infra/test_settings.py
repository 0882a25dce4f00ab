"""Flags and environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolbox_operator.settings import parse


def test_timings_can_be_overridden_one_by_one() -> None:
    settings = parse(["run", "--timing", "resync=5", "--timing", "lease_retry=0.5"], {})
    assert (settings.timings.resync, settings.timings.lease_retry) == (5.0, 0.5)
    assert settings.timings.lease_duration == 15.0


@pytest.mark.parametrize("timing", ["resync", "resync=", "resync=soon", "resync=-1", "nonsense=1", "lease_retry=12"])
def test_a_timing_that_makes_no_sense_is_refused_with_usage(timing: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["run", "--timing", timing], {})
    assert "usage:" in capsys.readouterr().err


def test_every_process_is_a_candidate_of_its_own() -> None:
    assert parse(["run"], {}).identity != parse(["run"], {}).identity


def test_the_database_comes_from_a_file_without_its_line_end(tmp_path: Path) -> None:
    file = tmp_path / "dsn"
    file.write_text("postgresql://u:secret@db/x\n")
    settings = parse(["run", "--database-url-file", str(file)], {"DATABASE_URL": "postgresql://other"})
    assert settings.database_url == "postgresql://u:secret@db/x"
    assert "secret" not in repr(settings)


def test_an_empty_database_file_is_a_mistake_and_not_no_database(tmp_path: Path) -> None:
    file = tmp_path / "dsn"
    file.write_text("\n")
    with pytest.raises(SystemExit):
        parse(["run", "--database-url-file", str(file)], {})


def test_the_environment_gives_the_database_if_no_flag_does() -> None:
    assert parse(["run"], {"DATABASE_URL": "postgresql://db"}).database_url == "postgresql://db"
    assert parse(["run"], {}).database_url is None


def test_the_machines_current_context_is_never_used() -> None:
    assert parse(["run"], {"KUBECONFIG": "/home/somebody/.kube/config"}).kubeconfig is None
