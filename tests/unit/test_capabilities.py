"""Capabilities, each time in a process of its own: what is given up never returns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoip.kernel import capabilities

NET_ADMIN_AND_RAW = 1 << 12 | 1 << 13
SETPCAP = 1 << 8

SHOW = """
import os, sys
from autoip import errors
from autoip.kernel import capabilities
{before}
try:
    capabilities.limit()
except errors.MissingCapability as error:
    print("missing", *error.names)
print(open("/proc/thread-self/status").read())
"""


def limited(*wrapper: str, before: str = "") -> tuple[str, dict[str, int]]:
    """Return what limit() did: the first line printed, and the numbers in the thread's status.

    `wrapper` is a command in front, `before` are statements just before the call.
    """
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", SHOW.format(before=before)],
        cwd=Path(capabilities.__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    fields = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    numbers = {name: int(value, 16) for name, value in fields.items() if name.startswith("Cap")}
    numbers["NoNewPrivs"] = int(fields["NoNewPrivs"])
    return done.stdout.splitlines()[0], numbers


def has_both() -> bool:
    status = Path("/proc/self/status").read_text()
    permitted = int(status.partition("CapPrm:")[2].split()[0], 16)
    return permitted & NET_ADMIN_AND_RAW == NET_ADMIN_AND_RAW


needs_both = pytest.mark.skipif(not has_both(), reason="needs CAP_NET_RAW and CAP_NET_ADMIN")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")


@needs_both
def test_keeps_two_and_nothing_else() -> None:
    printed, after = limited()
    assert not printed.startswith("missing")
    assert after["CapPrm"] == after["CapEff"] == NET_ADMIN_AND_RAW
    assert after["CapInh"] == after["CapAmb"] == 0
    assert after["NoNewPrivs"] == 1


@needs_root
def test_cuts_down_the_bounding_set() -> None:
    assert limited()[1]["CapBnd"] & ~NET_ADMIN_AND_RAW == 0


@needs_both
def test_twice_is_harmless() -> None:
    printed, after = limited(before="capabilities.limit()")
    assert not printed.startswith("missing")
    assert after["CapEff"] == NET_ADMIN_AND_RAW


@needs_root
def test_without_capabilities() -> None:
    """What is missing is reported, and nothing is changed."""
    printed, after = limited(before="os.setgid(65534); os.setuid(65534)")
    assert printed == "missing CAP_NET_RAW CAP_NET_ADMIN"
    assert after["NoNewPrivs"] == 0


@needs_root
@pytest.mark.parametrize(
    ("dropped", "name"), [("net_raw", "CAP_NET_RAW"), ("net_admin", "CAP_NET_ADMIN")]
)
def test_without_one_of_them(dropped: str, name: str) -> None:
    printed, after = limited("setpriv", f"--bounding-set=-{dropped}", "--inh-caps=-all")
    assert printed == f"missing {name}"
    # Nothing was changed: other capabilities are still there.
    assert after["CapEff"] & SETPCAP


# What a service manager does for User= and AmbientCapabilities=, in the same process: another
# user need not be able to read this Python.
AS_A_SERVICE = f"""
import ctypes, struct
libc = ctypes.CDLL(None)
PR_SET_KEEPCAPS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 8, 47, 2
assert libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
header = struct.pack("Ii", 0x20080522, 0)
data = struct.pack("6I", *[{NET_ADMIN_AND_RAW}] * 3, 0, 0, 0)
assert libc.capset(header, data) == 0
for number in (12, 13):
    assert libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0) == 0
print(*[line for line in open("/proc/thread-self/status") if line.startswith("CapAmb")])
"""


@needs_root
def test_with_the_two_alone() -> None:
    """Another user, no CAP_SETPCAP: the bounding set stays, the rest is done."""
    printed, after = limited(before=AS_A_SERVICE)
    assert int(printed.split()[1], 16) == NET_ADMIN_AND_RAW  # it was permitted
    assert after["CapEff"] == after["CapPrm"] == NET_ADMIN_AND_RAW
    assert after["CapInh"] == after["CapAmb"] == 0
    assert after["NoNewPrivs"] == 1
