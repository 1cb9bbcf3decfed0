"""Wait for the end of a child process, without a thread and without a signal handler."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess

_KILL_TIME = 1.0
"""Seconds that the kernel may take to end what was killed."""


async def ended(process: subprocess.Popen[bytes], timeout: float) -> bool:
    """Wait for the end of a process that leads a session; at the time-out, kill the session.

    Args:
        process: started with `start_new_session`.
        timeout: seconds.

    Returns:
        whether it ended by itself.
    """
    loop = asyncio.get_running_loop()
    end = asyncio.Event()
    # A descriptor that is readable when the process has ended.
    descriptor = os.pidfd_open(process.pid)
    loop.add_reader(descriptor, end.set)
    try:
        await asyncio.wait_for(end.wait(), timeout)
    except asyncio.TimeoutError:
        # Not reaped yet, so the number is still that of this process and of its group.
        os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(end.wait(), _KILL_TIME)
        return False
    else:
        return True
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
