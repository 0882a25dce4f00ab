"""`toolbox-dtma init`: what it makes, keeps and refuses."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from toolbox_dtma.gateway.settings import load_settings
from toolbox_dtma.init import InitError, InitOptions, init, renew
from toolbox_operator.api.toolbox import ToolboxSpec

pytestmark = [
    pytest.mark.component,
    pytest.mark.skipif(os.getuid() != 0, reason="gives files to another user, which needs root"),
]

GATEWAY = 65534
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def options(open_folder: Path) -> InitOptions:
    return InitOptions(
        state_dir=open_folder / "state",
        gateway_dir=open_folder / "gateway",
        runtime_dir=Path("/run/magic-toolbox-test"),
        addresses=("203.0.113.10", "tbx-1.example.com"),
        management_port=30000,
        gateway_port=30443,
        gateway_user=str(GATEWAY),
        name="tbx-1",
        namespace="mcp-system",
    )


def run(options: InitOptions, *, now: datetime = NOW) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(init(options, now=lambda: now)))


def names_of(path: Path) -> list[str]:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_output_is_secrets_and_a_toolbox_ready_to_apply(options: InitOptions) -> None:
    token, ca, toolbox = run(options)
    assert token["stringData"]["token"] == (options.state_dir / "token").read_text()
    assert ca["stringData"]["ca.crt"] == (options.state_dir / "ca.crt").read_text()
    assert toolbox["spec"] == {
        "endpoint": "https://203.0.113.10:30000",
        "gatewayURL": "https://203.0.113.10:30443",
        "authSecretRef": {"name": "tbx-1-dtma", "key": "token"},
        "caSecretRef": {"name": "tbx-1-ca", "key": "ca.crt"},
        "gatewayCASecretRef": {"name": "tbx-1-ca", "key": "ca.crt"},
    }
    assert [document["metadata"]["name"] for document in (token, ca, toolbox)] == ["tbx-1-dtma", "tbx-1-ca", "tbx-1"]
    assert {document["metadata"]["namespace"] for document in (token, ca, toolbox)} == {"mcp-system"}


def test_the_printed_toolbox_is_one_that_the_operator_accepts(options: InitOptions) -> None:
    spec = ToolboxSpec.model_validate(run(options)[2]["spec"])
    assert spec.gateway_ca_secret_ref is not None


def test_an_ipv6_address_is_bracketed_and_listened_on(options: InitOptions) -> None:
    spec = run(replace(options, addresses=("2001:db8::7",)))[2]["spec"]
    assert spec["endpoint"] == "https://[2001:db8::7]:30000"
    assert load_settings(options.gateway_dir / "gateway.json").listen_host == "::"


def test_a_second_run_changes_nothing_and_prints_the_same(options: InitOptions) -> None:
    first = init(options, now=lambda: NOW)
    before = content(options.state_dir) | content(options.gateway_dir)
    assert init(options, now=lambda: NOW + timedelta(days=30)) == first
    assert content(options.state_dir) | content(options.gateway_dir) == before


def test_other_addresses_get_new_certificates_of_the_same_authority(options: InitOptions) -> None:
    first = run(options)
    moved = run(replace(options, addresses=("203.0.113.11",)))
    assert moved[:2] == first[:2]
    assert moved[2]["spec"]["endpoint"] == "https://203.0.113.11:30000"
    for folder in (options.state_dir, options.gateway_dir):
        assert names_of(folder / "tls.crt") == ["203.0.113.11", "127.0.0.1", "::1", "localhost"]


def test_a_certificate_near_its_end_is_renewed(options: InitOptions) -> None:
    run(options)
    before = (options.state_dir / "tls.crt").read_bytes()
    run(options, now=NOW + timedelta(days=700))
    assert (options.state_dir / "tls.crt").read_bytes() == before
    run(options, now=NOW + timedelta(days=770))
    assert (options.state_dir / "tls.crt").read_bytes() != before


def test_renew_makes_new_certificates_near_their_end_and_keeps_all_else(options: InitOptions) -> None:
    run(options)
    before = content(options.state_dir) | content(options.gateway_dir)
    assert renew(options.state_dir, now=lambda: NOW).count(": kept, good until ") == 2
    assert content(options.state_dir) | content(options.gateway_dir) == before
    later = renew(options.state_dir, now=lambda: NOW + timedelta(days=770))
    assert later.splitlines()[0] == f"{options.state_dir / 'tls.crt'}: renewed, good until 2030-05-10"
    after = content(options.state_dir) | content(options.gateway_dir)
    changed = {path for path, value in after.items() if before[path] != value}
    folders = (options.state_dir, options.gateway_dir)
    assert changed == {str(folder / name) for folder in folders for name in ("tls.crt", "tls.key")}
    assert names_of(options.gateway_dir / "tls.crt") == names_of(options.state_dir / "tls.crt")
    assert (options.gateway_dir / "tls.key").stat().st_uid == GATEWAY


def test_renew_can_be_forced_and_warns_of_an_authority_that_ends(options: InitOptions) -> None:
    run(options)
    before = (options.state_dir / "tls.crt").read_bytes()
    said = renew(options.state_dir, now=lambda: NOW + timedelta(days=3000), force=True)
    assert (options.state_dir / "tls.crt").read_bytes() != before
    assert "the authority itself ends on 2035-12-30" in said


def test_renew_without_a_host_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InitError, match="toolbox-dtma init"):
        renew(tmp_path, now=lambda: NOW)


def test_what_was_added_to_the_gateways_settings_stays(options: InitOptions) -> None:
    run(options)
    path = options.gateway_dir / "gateway.json"
    added = {"drainSeconds": 30, "tlsCertificate": "/etc/live/fullchain.pem", "clients": {"connections": 100}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **added}))
    run(replace(options, gateway_workers=4))
    settings = load_settings(path)
    assert (settings.drain_seconds, settings.clients.connections, settings.workers) == (30, 100, 4)
    assert settings.tls_certificate == Path("/etc/live/fullchain.pem")
    path.write_text("no JSON")
    with pytest.raises(InitError, match=r"gateway\.json holds no JSON object"):
        run(options)


def test_a_run_cut_short_is_completed_by_the_next(options: InitOptions) -> None:
    first = run(options)
    for name in ("keyring.json", "spec.key", "tls.crt"):
        (options.state_dir / name).unlink()
    (options.gateway_dir / "tls.key").unlink()
    assert run(options) == first
    assert load_settings(options.gateway_dir / "gateway.json").tls_key == options.gateway_dir / "tls.key"
    assert (options.gateway_dir / "tls.key").exists()


def test_the_gateways_folder_is_the_gateways_and_the_state_is_private(options: InitOptions) -> None:
    run(options)
    settings = load_settings(options.gateway_dir / "gateway.json")
    assert (settings.listen_port, settings.workers) == (30443, 2)
    assert settings.socket == Path("/run/magic-toolbox-test/gateway.sock")
    for path in (options.gateway_dir, *options.gateway_dir.iterdir()):
        assert path.stat().st_uid == GATEWAY
    for path in (options.state_dir, *options.state_dir.iterdir()):
        assert path.stat().st_uid == 0
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Tbx"}, "--name"),
        ({"namespace": "a.b"}, "--namespace"),
        ({"addresses": ("not an address",)}, "--address"),
        ({"addresses": ("-x.example.com",)}, "--address"),
        ({"gateway_port": 30000}, "must differ"),
        ({"management_port": 70000}, "70000"),
        ({"gateway_user": "root"}, "must not run as root"),
        ({"gateway_user": "0"}, "must not run as root"),
        ({"gateway_user": "nobody-by-this-name"}, "there is no user"),
        ({"runtime_dir": Path("/" + "x" * 110)}, "--runtime-dir"),
        ({"state_dir": Path("relative")}, "absolute"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_change(
    options: InitOptions, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InitError, match=message):
        run(replace(options, **change))


def test_a_folder_the_gateway_cannot_enter_is_named(options: InitOptions, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(InitError, match=str(closed)):
        run(replace(options, gateway_dir=closed / "gateway"))


def test_a_host_keeps_its_name(options: InitOptions) -> None:
    run(options)
    with pytest.raises(InitError, match="mcp-system/tbx-1"):
        run(replace(options, name="tbx-2"))


def test_the_command_prints_yaml_only_and_fails_with_one_line(options: InitOptions) -> None:
    command = [sys.executable, "-m", "toolbox_dtma", "init"]
    command += ["--state-dir", str(options.state_dir), "--gateway-dir", str(options.gateway_dir)]
    command += ["--runtime-dir", "/run/magic-toolbox-test", "--address", "203.0.113.10", "--name", "tbx-1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def call(user: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "--gateway-user", user],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    good = call(str(GATEWAY))
    assert good.returncode == 0, good.stderr
    assert len(list(yaml.safe_load_all(good.stdout))) == 3
    bad = call("root")
    assert bad.returncode == 2
    assert bad.stdout == ""
    assert bad.stderr.count("\n") == 1


def test_the_gateway_command_loads_nothing_that_talks_to_docker(tmp_path: Path) -> None:
    code = (
        "import sys; from toolbox_dtma.__main__ import main\n"
        "main(['gateway', '--config', sys.argv[1]])\n"
        "print([m for m in ('aiodocker', 'fastapi', 'toolbox_dtma.engine.docker') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "missing.json")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip().endswith("[]"), done.stderr
