"""Saving the address on a disk that hangs: the end does not wait for it, and one thread at most does."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from autoip.daemon import address_memory
from autoip.daemon.address_memory import AddressMemory
from autoip.daemon.address_store import AddressStore
from autoip.daemon.reporter import Reporter
from autoip.options import Options

MAC = bytes.fromhex("020000000001")
A, B, C = (IPv4Address(f"169.254.7.{n}") for n in (1, 2, 3))


class HangingStore(AddressStore):
    """Each save waits until it is let go on."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.begun: list[IPv4Address] = []
        self.saved: list[IPv4Address] = []
        self.goes_on = threading.Semaphore(0)

    def save(self, mac: bytes, address: IPv4Address, interface: str) -> None:
        self.begun.append(address)
        self.goes_on.acquire()
        super().save(mac, address, interface)
        self.saved.append(address)


def memory_of(store: AddressStore, lines: list[str]) -> AddressMemory:
    log = logging.getLogger(f"memory.{id(lines)}")
    log.propagate = False
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    return AddressMemory(
        Reporter("eth0", log, logging.INFO, lambda: 0.0, lambda _: None), store, Options()
    )


def test_the_end_is_not_delayed_by_a_disk_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address_memory, "WRITE_TIMEOUT", 0.01)
    store, lines = HangingStore(tmp_path), list[str]()

    async def play() -> None:
        memory = memory_of(store, lines)
        memory.remember(MAC, A)
        await memory.written()

    late = threading.Timer(10.0, store.goes_on.release)  # until then an end that waits would wait
    late.daemon = True
    late.start()
    asyncio.run(play())
    assert store.saved == []
    assert [line for line in lines if "does not wait for the disk" in line]
    late.cancel()


def test_one_write_at_a_time_and_the_newest_address_next(tmp_path: Path) -> None:
    store, lines = HangingStore(tmp_path), list[str]()

    async def play() -> None:
        memory = memory_of(store, lines)
        memory.remember(MAC, A)
        while not store.begun:
            await asyncio.sleep(0)
        memory.remember(MAC, B)
        memory.remember(MAC, C)
        for _ in range(100):
            await asyncio.sleep(0)
        assert store.begun == [A]
        store.goes_on.release(2)
        await memory.written()

    asyncio.run(play())
    assert store.saved == [A, C]
    assert AddressStore(tmp_path).load(MAC) == C
    assert not lines


def test_without_a_thread_there_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    lines: list[str] = []

    async def play() -> None:
        memory = memory_of(AddressStore(tmp_path), lines)
        memory.remember(MAC, A)
        await memory.written()

    monkeypatch.setattr(threading.Thread, "start", refuse)
    asyncio.run(play())
    assert lines == ["eth0: the address is not saved: can't start new thread"]


HANGS = """\
import asyncio, threading
from autoip.kernel.daemon_threads import DaemonThreads

async def main():
    call = threading.Event().wait
    asyncio.get_running_loop().run_in_executor(DaemonThreads(), call)
    await asyncio.sleep(0.01)

asyncio.run(main())
print("ends")
"""


def test_the_process_ends_while_a_call_blocks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("ends\n", "")
