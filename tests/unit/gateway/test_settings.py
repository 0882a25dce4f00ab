"""What gateway.json may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from toolbox_dtma.gateway.settings import SettingsInvalid, load_settings

GOOD: dict[str, Any] = {
    "listenHost": "0.0.0.0",
    "listenPort": 30443,
    "tlsCertificate": "/etc/tls.crt",
    "tlsKey": "/etc/tls.key",
    "socket": "/run/magic-toolbox/gateway.sock",
    "workers": 2,
}


def written(folder: Path, document: Any) -> Path:
    path = folder / "gateway.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_a_complete_file_is_read(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, GOOD))
    assert (settings.listen_port, settings.workers, settings.policy_grace_seconds) == (30443, 2, 30.0)


def test_plain_http_is_for_loopback(tmp_path: Path) -> None:
    plain = {key: value for key, value in GOOD.items() if not key.startswith("tls")}
    assert load_settings(written(tmp_path, {**plain, "listenHost": "127.0.0.1"})).tls_certificate is None
    with pytest.raises(SettingsInvalid, match="tlsCertificate"):
        load_settings(written(tmp_path, plain))


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({**GOOD, "worker": 3}, "worker"),
        ({**GOOD, "workers": 0}, "workers"),
        ({**GOOD, "listenPort": 70000}, "listenPort"),
        ({**GOOD, "tlsKey": None}, "tlsKey"),
        ({**GOOD, "policyGraceSeconds": 31}, "policyGraceSeconds"),
        ({}, "socket"),
        ("{", "JSON"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, document: Any, said: str) -> None:
    with pytest.raises(SettingsInvalid, match=said):
        load_settings(written(tmp_path, document))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match=r"nowhere\.json"):
        load_settings(tmp_path / "nowhere.json")
