"""Keys of session ids are renewed under workers that lag, vanish or restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.dtma.host import FAST, DtmaHost, eventually
from support.dtma.worker import ScriptedWorker, connected
from toolbox_dtma.state.files import read_record
from toolbox_dtma.state.records import KeyRingRecord

pytestmark = pytest.mark.component

BRISK = FAST.model_copy(update={"key_lifetime": 1.5, "key_kept": 1.5, "ack_deadline": 0.2})


def on_disk(host: DtmaHost) -> KeyRingRecord:
    return read_record(host.state_dir / "keyring.json", KeyRingRecord)


async def signing(worker: ScriptedWorker, kid: str) -> list[str]:
    """The keys that a worker had when this one began to sign."""

    async def look() -> list[list[str]]:
        return [[key.kid for key in ring.keys] for ring in worker.rings if ring.signing == kid]

    return (await eventually(look, bool, f"{kid} signs"))[0]


async def test_keys_are_renewed_and_old_ones_leave(open_folder: Path) -> None:
    host = DtmaHost(open_folder, timings=BRISK)
    await host.start()
    try:
        async with connected(ScriptedWorker(), host.socket_path) as worker:
            assert await signing(worker, "k2") == ["k1", "k2"]

            async def keys() -> list[str]:
                return [key.kid for key in worker.policy.keyring.keys]

            await eventually(keys, lambda kids: "k1" not in kids and len(kids) > 1, "k1 is gone")
        assert on_disk(host).keyring.signing != "k1"
    finally:
        await host.stop()


async def test_no_key_signs_before_every_worker_knows_it(open_folder: Path) -> None:
    host = DtmaHost(open_folder, timings=BRISK)
    await host.start()
    try:
        quick, slow = ScriptedWorker(), ScriptedWorker(acks=False)
        async with connected(quick, host.socket_path), connected(slow, host.socket_path):

            async def known() -> list[str]:
                return [key.kid for key in quick.policy.keyring.keys]

            await eventually(known, lambda kids: "k2" in kids, "k2 is announced")
            # Longer than it would take if the slow worker did not count.
            revision = quick.revision

            async def revised() -> bool:
                return quick.revision != revision

            with pytest.raises(AssertionError, match="the next step"):
                longer = 3 * BRISK.ack_deadline + BRISK.key_lifetime
                await eventually(revised, bool, "the next step", seconds=longer)
            assert quick.policy.keyring.signing == "k1" and on_disk(host).keyring.signing == "k1"
            slow.acks = True
            await slow.acknowledge()
            assert await signing(quick, "k2") == await signing(slow, "k2") == ["k1", "k2"]
    finally:
        await host.stop()


async def test_a_restart_keeps_the_ring(open_folder: Path) -> None:
    host = DtmaHost(open_folder)
    await host.start()
    before = on_disk(host)
    await host.restart()
    try:
        async with connected(ScriptedWorker(), host.socket_path) as worker:
            assert worker.policy.keyring == before.keyring == on_disk(host).keyring
    finally:
        await host.stop()
