"""The demonstration tells the truth: it succeeds with a good program and fails with one that breaks a rule."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time

import pytest

from demo import disorder
from lab.daemon import REPOSITORY
from tests.require import requires_kernel_feature, requires_root

pytestmark = [requires_root, requires_kernel_feature("veth")]
STAND_IN = [sys.executable, "-m", "tests.netns.standin"]


def demo(command: list[str] | None) -> tuple[subprocess.CompletedProcess[str], float]:
    """The demonstration of a command (None: autoip), and how many seconds it took."""
    environment = dict(os.environ)
    if command is not None:
        environment["AUTOIP_COMMAND"] = shlex.join(command)
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "demo"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=70,
        check=False,
    )
    return result, time.monotonic() - start


@pytest.mark.parametrize("command", [None, STAND_IN], ids=["autoip", "stand-in"])
def test_demo_succeeds_and_ends_by_itself(command: list[str] | None) -> None:
    result, seconds = demo(command)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "All of it happened" in result.stdout
    assert result.stdout.count("Defended") == 2
    assert result.stderr == ""
    assert seconds < 60
    if command is None:
        assert disorder(result.stdout) is None, result.stdout


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ([*STAND_IN, "--deaf"], "was taken although the neighbour has it"),
        ([*STAND_IN, "--meek"], "not defended"),
        ([*STAND_IN, "--stubborn"], "defended twice"),
        ([*STAND_IN, "--untidy"], "addresses left"),
        (["sh", "-c", "exit 3"], "ended with status 3"),
        (["no-such-program"], "ended with status 127"),
    ],
    ids=["deaf", "meek", "stubborn", "untidy", "ends", "absent"],
)
def test_demo_fails_with_a_program_that_breaks_a_rule(command: list[str], why: str) -> None:
    result, _ = demo(command)
    assert result.returncode == 1, result.stdout
    assert f"FAILED: {why}" in result.stderr or why in result.stderr.splitlines()[-1]
    assert "left behind" not in result.stderr
    assert "All of it happened" not in result.stdout


def test_demo_that_may_not_make_a_namespace_says_so() -> None:
    result = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-m", "demo"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=70,
        check=False,
    )
    assert result.returncode == 1
    assert "FAILED: [Errno 1] unshare" in result.stderr
    assert "Traceback" not in result.stderr
