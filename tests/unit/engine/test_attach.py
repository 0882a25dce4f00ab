"""Attaching over a raw connection, with an engine that sends what a test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from toolbox_dtma.engine.attach import attached
from toolbox_dtma.engine.failures import DockerRefused, Failure

UPGRADED = b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nUpgrade: tcp\r\n\r\n"


@asynccontextmanager
async def engine(folder: Path, *pieces: bytes, hang_up: bool = False) -> AsyncGenerator[tuple[str, list[bytes]]]:
    """Its URL, and the heads that it was sent. `pieces` arrive one by one."""
    heads: list[bytes] = []
    ended = asyncio.Event()
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        with contextlib.suppress(ConnectionError):
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                # So that they do not arrive as one.
                await asyncio.sleep(0.01)
            if not hang_up:
                writer.write(await reader.read(100))
                await ended.wait()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_unix_server(serve, folder / "e.sock")
    async with server:
        yield f"unix://{folder / 'e.sock'}", heads
        ended.set()
        await asyncio.gather(*serving)


def in_pieces(text: bytes, size: int) -> list[bytes]:
    return [text[at : at + size] for at in range(0, len(text), size)]


WITH_OUTPUT = UPGRADED + b"\x01\0\0\0\0\0\0\x03out"


@pytest.mark.parametrize("pieces", [[WITH_OUTPUT], in_pieces(WITH_OUTPUT, 7), [WITH_OUTPUT[:-13], WITH_OUTPUT[-13:]]])
async def test_not_a_byte_after_the_head_is_lost(tmp_path: Path, pieces: list[bytes]) -> None:
    async with engine(tmp_path, *pieces) as (url, heads):
        stream = await attached(url, "v1.41/containers/c1")
        with stream:
            loop = asyncio.get_running_loop()
            received = b""
            async with asyncio.timeout(5):
                while len(received) < 11:
                    received += await loop.sock_recv(stream, 100)
                await loop.sock_sendall(stream, b"in")
                received += await loop.sock_recv(stream, 100)
    assert received == b"\x01\0\0\0\0\0\0\x03outin"
    assert heads[0].startswith(b"POST /v1.41/containers/c1/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\n")
    assert b"\r\nUpgrade: tcp\r\n" in heads[0]


async def test_a_refusal_carries_what_docker_says(tmp_path: Path) -> None:
    refusal = b'HTTP/1.1 409 Conflict\r\nContent-Length: 24\r\n\r\n{"message": "is paused"}'
    async with engine(tmp_path, refusal) as (url, _):
        with pytest.raises(DockerRefused, match="is paused") as refused:
            await attached(url, "v1.41/containers/c1")
    assert refused.value.status == 409


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 101 UPGR"])
async def test_an_engine_that_hangs_up_is_away(tmp_path: Path, answer: bytes) -> None:
    async with engine(tmp_path, answer, hang_up=True) as (url, _):
        with pytest.raises(OSError, match="hung up"):
            await attached(url, "v1.41/containers/c1")


@pytest.mark.parametrize("answer", [b"x" * 40_000, b"SSH-2.0-nothing\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n"])
async def test_what_is_no_answer_is_refused(tmp_path: Path, answer: bytes) -> None:
    async with engine(tmp_path, *in_pieces(answer, 8192), hang_up=True) as (url, _):
        with pytest.raises((DockerRefused, ConnectionResetError)):
            await attached(url, "v1.41/containers/c1")


async def test_no_engine_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await attached(f"unix://{tmp_path / 'none.sock'}", "v1.41/containers/c1")


async def test_an_engine_behind_tls_has_no_socket_to_hand_on_and_says_what_to_change() -> None:
    with pytest.raises(Failure, match="--docker-url"):
        await attached("https://docker.example.com:2376", "v1.41/containers/c1")
