"""What a daemon that died has left on an interface, removed without a new daemon: for `autoip stop --leftovers`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from autoip.control.protocol import socket_name
from autoip.daemon.lock_file import Held, LockFile, lock_name
from autoip.errors import AlreadyRunning, AutoipError
from autoip.kernel import capabilities, users
from autoip.kernel.capabilities import as_owner
from autoip.kernel.network import Network
from autoip.paths import network_namespace

TIMEOUT = 10.0
"""Seconds that the kernel may take."""


def remove(directory: Path, interface: str) -> None:
    """Remove address, rule, routes, filter and files; nothing if no daemon died, or one serves the interface.

    If this fails, the lock file stays, and with it the record for the next attempt.

    Args:
        directory: of the lock files.
        interface: its name.

    Raises:
        NoPermission: the lock file or the network may not be changed.
        AutoipError: the kernel refused something, or did not answer.
    """
    if not os.path.lexists(directory / lock_name(interface)):
        return
    users.become(None, [directory])
    capabilities.limit()
    try:
        lock_file = LockFile.acquire(directory, interface)
    except AlreadyRunning:
        return
    try:
        asyncio.run(asyncio.wait_for(_remove(lock_file.previous, interface), TIMEOUT))
    except asyncio.TimeoutError:
        raise AutoipError(f"{interface}: the kernel did not answer") from None
    with contextlib.suppress(OSError), as_owner(directory):
        os.unlink(directory / socket_name(network_namespace(), interface))
    lock_file.release()


async def _remove(owned: Held | None, interface: str) -> None:
    network = Network()
    await network.open()
    try:
        links, addresses = await network.snapshot()
        for index in (link.index for link in links if link.name == interface):
            await network.remove_onlink(index)
            await network.remove_default(index)
            await network.neighbours.clear(index)
            for found in addresses:
                if owned == Held(index, found.address) == Held(found.index, found.address):
                    await network.remove_address(index, found.address)
            await network.release(index)
        await network.sweep()
    finally:
        network.close()
