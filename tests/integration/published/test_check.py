"""`examples/images/check.py` says of an image whether a toolbox could run it, and what to change if not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from localstack.docker import Engine
from support.engine.images import busybox_image
from support.published.stdio import CHECK

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="the local stack needs root"),
]

Published = Callable[[str], str]

SHAKES_HANDS = """\
read -r hello; printf '{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-11-25","serverInfo":%s}}\\n' \
'{"name":"shell","version":"1"}'
read -r initialized; read -r list; printf '{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"nap"}]}}\\n'
"""


@pytest.fixture(scope="module")
def tiny_image(docker_engine: Engine) -> str:
    """Busybox: a program of the command line is the whole server, and the image names no user."""
    return busybox_image()


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the script as a person does."""
    argv = [sys.executable, str(CHECK), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=200, check=False)


def complaint(*arguments: str) -> str:
    """What the script finds wrong."""
    done = check(*arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    return done.stderr


def test_a_fit_server_on_pipes_is_told_with_its_tools(published: Published) -> None:
    done = check(published("time"), "--local-timezone=UTC")
    assert done.returncode == 0, done.stderr
    assert "\n2 tools: get_current_time convert_time\n" in done.stdout
    assert "note:" not in done.stdout


def test_a_fit_server_on_a_port_is_told_with_its_tools(published: Published) -> None:
    done = check("--port=8000", "--env=GREETING=Hi", published("hello"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hello 1.0.0, revision 2025-11-25\n3 tools: greet word_count fail\n"


def test_a_server_on_another_port_or_path_is_told_apart(published: Published) -> None:
    assert "nothing on port 8001" in complaint("--port=8001", "--deadline=3", published("hello"))
    assert "HTTP 404 on /other" in complaint("--port=8000", "--path=/other", published("hello"))


def test_words_on_stdout_that_are_not_mcp_are_shown(tiny_image: str) -> None:
    said = complaint(tiny_image, "sh", "-c", "echo Listening on pipes; cat")
    assert "stdout is for MCP alone, log to stderr; the server wrote b'Listening on pipes\\n'" in said


def test_a_server_that_ends_at_once_is_told_with_its_log(tiny_image: str) -> None:
    said = complaint(tiny_image, "sh", "-c", "echo no key given >&2; exit 3")
    assert "exit code 3" in said and "no key given" in said


def test_a_server_that_says_nothing_is_given_up(tiny_image: str, docker_engine: Engine) -> None:
    argv = [sys.executable, str(CHECK), "--deadline=5", tiny_image, "sleep", "1000"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as script:
        _, said = script.communicate(timeout=60)
    assert "no answer to initialize within 5 s" in said
    # By its own name: tests beside this one check images too.
    assert docker_engine.docker("ps", "--all", "--quiet", "--filter", f"name=^check-{script.pid}$").strip() == ""


def test_an_image_that_is_not_there_is_what_docker_says(docker_engine: Engine) -> None:
    assert "127.0.0.1:9/nothing" in complaint("127.0.0.1:9/nothing:1")


def test_a_server_that_outlives_its_input_and_a_root_user_are_noted(tiny_image: str) -> None:
    done = check("--deadline=10", tiny_image, "sh", "-c", f"{SHAKES_HANDS} exec sleep 1000")
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert told[:2] == ["shell 1, revision 2025-11-25", "1 tools: nap"]
    assert "does not end when its input does" in told[2] and "runs as root" in told[3]
    assert "note:" not in check("--user=10001", tiny_image, "sh", "-c", SHAKES_HANDS).stdout
