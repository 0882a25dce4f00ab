"""Length-prefixed JSON frames over asyncio streams."""

from __future__ import annotations

import asyncio
import struct

from toolbox_dtma.link.messages import MAX_FRAME_BYTES, Message

_LENGTH = struct.Struct(">I")


class FrameError(Exception):
    """The peer sent a frame that is too large or not of this protocol; the connection must be closed."""


def encode_frame(message: Message) -> bytes:
    """One frame. Raises `FrameError` above 1 MiB."""
    return encode_payload(message.model_dump_json(exclude_defaults=False).encode())


def encode_payload(payload: bytes) -> bytes:
    """One frame of a message that is JSON already. Raises `FrameError` above 1 MiB."""
    if len(payload) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {len(payload)} bytes exceeds {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(payload)) + payload


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """The payload of the next frame, or None at a clean end of stream.

    Raises `FrameError` for an oversized frame or one cut short.
    """
    try:
        header = await reader.readexactly(_LENGTH.size)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise FrameError("the stream ended inside a frame header") from error
        return None
    (length,) = _LENGTH.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {length} bytes exceeds {MAX_FRAME_BYTES}")
    try:
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        raise FrameError("the stream ended inside a frame") from error
