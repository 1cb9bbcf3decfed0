"""rivals: which programs are reported, by which addresses, and how often."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from ipaddress import IPv4Address

import pytest

from autoip.daemon import rivals
from autoip.daemon.reporter import Reporter
from autoip.daemon.rivals import LABELS_MAX, Process, Rivals, is_rival, managers, running, warning
from autoip.kernel.model import PROTOCOL, Address


def entry(
    label: str | None = "eth0", proto: int | None = None, text: str = "169.254.7.7"
) -> Address:
    return Address(2, IPv4Address(text), 16, 253, label, proto)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (entry(), True),
        (entry("eth0:avahi"), True),
        (entry(proto=3), True),
        (entry(proto=PROTOCOL), False),
        (entry(text="192.0.2.5"), False),
        (entry(text="169.253.7.7"), False),
    ],
)
def test_addresses_of_rivals(address: Address, expected: bool) -> None:
    assert is_rival(address) is expected


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("avahi-autoipd: [eth0] bound 169.254.7.7",), "avahi-autoipd"),
        (("/usr/sbin/avahi-autoipd", "eth0"), "avahi-autoipd"),
        (("avahi-autoipd: [eth1] bound 169.254.7.7",), None),
        (("/usr/sbin/avahi-autoipd", "eth01"), None),
        (("avahi-daemon: running [host.local]",), None),
        (("busybox", "zcip", "-f", "eth0", "/etc/zcip.script"), "zcip"),
        (("/sbin/zcip", "eth0", "/etc/zcip.script"), "zcip"),
        (("busybox", "zcip", "eth1", "/etc/zcip.script"), None),
        (("busybox", "udhcpc", "-i", "eth0"), None),
        (("dhcpcd: [manager] [ip4]",), "dhcpcd"),
        (("/usr/sbin/dhcpcd", "-q"), "dhcpcd"),
        (("dhcpcd-ui",), None),
        (("/usr/sbin/NetworkManager", "--no-daemon"), "NetworkManager"),
        (("/lib/systemd/systemd-networkd",), "systemd-networkd"),
        (("/lib/systemd/systemd-networkd-wait-online",), None),
        (("/usr/sbin/connmand", "-n"), "ConnMan"),
        (("vi", "dhcpcd"), None),
        (("",), None),
        ((), None),
    ],
)
def test_programs(arguments: tuple[str, ...], name: str | None) -> None:
    expected = [] if name is None else [f"{name} (process 7)"]
    assert managers("eth0", [Process(7, arguments)]) == expected


def test_one_of_each_kind() -> None:
    processes = [Process(pid, ("dhcpcd: [manager]",)) for pid in (5, 6, 7)]
    assert managers("eth0", processes) == ["dhcpcd (process 5)"]


@pytest.mark.parametrize(
    ("label", "arguments", "who"),
    [
        ("eth0:avahi", ("dhcpcd",), "avahi-autoipd, by its label"),
        ("eth0", ("dhcpcd",), "dhcpcd (process 9)"),
        (None, ("dhcpcd",), "dhcpcd (process 9)"),
        ("eth0", ("bash",), "somebody"),
    ],
)
def test_who_put_it(label: str | None, arguments: tuple[str, ...], who: str) -> None:
    line = warning(entry(label), "eth0", [Process(9, arguments)])
    assert line.startswith(f"{who} has put 169.254.7.7/16 on this interface")


def test_processes() -> None:
    """Read from /proc as they are: a child with a title of its own, and not ourselves."""
    title = os.fsdecode(b"dhcpcd: \xff [ip4]")
    pipe = subprocess.PIPE
    with subprocess.Popen([title, "-"], executable="/bin/cat", stdin=pipe, stdout=pipe) as child:
        assert child.stdin is not None and child.stdout is not None
        # Right after Popen the kernel may not have its command line yet: wait until it runs.
        child.stdin.write(b"x")
        child.stdin.flush()
        assert child.stdout.read(1) == b"x"
        found = {process.pid: process.arguments for process in running()}
        child.stdin.close()
    assert found[child.pid] == (title, "-")
    assert os.getpid() not in found
    assert all(found.values())


def reported(*addresses: Address) -> list[str]:
    """The notes of an interface that has these addresses, all checks done."""
    notes: list[str] = []

    class Notes(Reporter):
        def note(self, text: str) -> None:
            notes.append(text)

    reporter = Notes("eth0", logging.getLogger(), logging.INFO, lambda: 0.0, lambda _: None)

    async def check() -> None:
        found = Rivals(reporter)
        found.check(lambda: addresses)
        for _ in range(2 * len(addresses)):
            await found.ended()
        found.check(lambda: addresses)
        await found.ended()

    asyncio.run(check())
    return notes


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[Process]:
        raise FileNotFoundError("no /proc")

    monkeypatch.setattr(rivals, "running", refuse)


@pytest.mark.usefixtures("no_processes")
def test_each_label_is_reported_once() -> None:
    labels = ["eth0", "eth0:avahi", "eth0", None, "eth0:avahi"]
    notes = reported(*map(entry, labels), entry(proto=PROTOCOL), entry(text="192.0.2.5"))
    assert [note.partition(" has put")[0] for note in notes] == [
        "somebody",
        "avahi-autoipd, by its label",
        "somebody",
    ]


@pytest.mark.usefixtures("no_processes")
def test_a_flood_of_labels_is_bounded() -> None:
    assert (
        len(reported(*(entry(f"eth0:{number}") for number in range(3 * LABELS_MAX)))) == LABELS_MAX
    )
