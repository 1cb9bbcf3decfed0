"""The example of a udev rule, as udev reads it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lab import Port
from lab.daemon import REPOSITORY
from tests.require import requires_kernel_feature, requires_program, requires_root

from .conftest import MakeHost

RULES = REPOSITORY / "share" / "90-autoip.rules"

pytestmark = [
    requires_root,
    requires_kernel_feature("veth"),
    requires_program("udevadm", "udev"),
]


def judged(port: Port, rules: str) -> str:
    """What udev says of the interface's arrival.  /run is the namespace's own."""
    folder = Path("/run/udev/rules.d")
    port.host.call(folder.mkdir, parents=True, exist_ok=True)
    port.host.call((folder / RULES.name).write_text, rules)
    path = f"/sys/class/net/{port.name}"
    return port.host.run("sh", "-c", f"udevadm test --action=add {path} 2>&1", check=False)


@pytest.mark.parametrize("enabled", [False, True], ids=["as-it-is", "by-name"])
def test_rule(make_host: MakeHost, enabled: bool) -> None:
    text = RULES.read_text()
    if enabled:  # a virtual interface is on no USB port, but it can have the name
        text = re.sub(r"^#(KERNEL)", r"\1", text, flags=re.MULTILINE)
    said = judged(make_host("usb0"), text)
    assert f"Reading rules file: /run/udev/rules.d/{RULES.name}" in said
    complaints = [line for line in said.splitlines() if RULES.name in line][1:]
    assert complaints == []
    assert ("SYSTEMD_WANTS=autoip@usb0.service" in said) == enabled


def test_every_example_can_be_read(make_host: MakeHost) -> None:
    text = re.sub(r"^#(?=[A-Z]+[{=])", "", RULES.read_text(), flags=re.MULTILINE)
    assert text.count("\nKERNEL") == text.count("\nATTR") == 1
    said = judged(make_host("usb0"), text)
    assert [
        line for line in said.splitlines() if RULES.name in line and "Reading" not in line
    ] == []
