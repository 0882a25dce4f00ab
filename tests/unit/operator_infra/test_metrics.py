from __future__ import annotations

from toolbox_operator.metrics import Metrics, Pulled


def test_pulls_are_told_by_toolbox_as_they_are_when_asked() -> None:
    metrics, pulls = Metrics(), [Pulled("ns/a", 2.5, 7, supported=True), Pulled("ns/old", None, 0, supported=False)]
    metrics.watch_pulls(lambda: pulls)
    text = metrics.render().decode()
    assert 'magic_toolbox_calls_pull_age_seconds{toolbox="ns/a"} 2.5' in text
    assert 'magic_toolbox_calls_dropped{toolbox="ns/a"} 7.0' in text
    assert 'magic_toolbox_calls_supported{toolbox="ns/a"} 1.0' in text
    assert 'magic_toolbox_calls_supported{toolbox="ns/old"} 0.0' in text
    assert 'pull_age_seconds{toolbox="ns/old"}' not in text
    pulls.clear()
    assert "toolbox=" not in metrics.render().decode()
