"""Credentials: explicit, and the same for our client and for kopf."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from toolbox_operator.kube.login import Login, LoginFailed

CONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:6443", "insecure-skip-tls-verify": True}}],
    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    "current-context": "x",
}


def write(path: Path, token: str) -> None:
    path.write_text(yaml.safe_dump({**CONFIG, "users": [{"name": "u", "user": {"token": token}}]}))


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    write(path, "not-a-real-token")
    return path


async def test_both_clients_log_in_with_the_given_file(kubeconfig: Path) -> None:
    login = Login(kubeconfig)
    assert (await login.configuration()).host == "https://127.0.0.1:6443"
    connection = await login.kopf_connection()
    assert (connection.server, connection.token) == ("https://127.0.0.1:6443", "not-a-real-token")
    assert connection.as_http_headers() == {"Authorization": "Bearer not-a-real-token"}


async def test_a_new_token_in_the_file_is_used_at_the_next_login(kubeconfig: Path) -> None:
    login = Login(kubeconfig)
    await login.kopf_connection()
    write(kubeconfig, "another")
    assert (await login.kopf_connection()).token == "another"


async def test_without_a_file_and_outside_a_cluster_the_message_says_what_to_give(
    kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(LoginFailed, match="give --kubeconfig PATH"):
        await Login().configuration()


@pytest.mark.parametrize("text", ["", "not: [valid", "{}", "clusters: 5"])
async def test_a_file_that_is_no_kubeconfig_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(LoginFailed, match="cannot use kubeconfig"):
        await Login(path).configuration()
