"""The conformance suite finds what is wrong: a program with one defect falls short in just the rows concerned."""

from __future__ import annotations

import contextlib
import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from autoip.kernel import arp_socket, tcx
from conformance.device import Machine
from lab import Switch

from .helpers import NETNS, NO_TCX, PATIENCE, has_tcx

pytestmark = NETNS

REPOSITORY = Path(__file__).resolve().parents[2]

DEFECTS = {
    # defect: (rows in which it falls short, a row that holds nevertheless)
    "": ((), "claim-unicast-probe"),
    "--meek": (("def-once",), "def-yield"),
    "--deaf": (("claim-conflict", "def-detect"), "announce"),
    "--stubborn": (("def-yield",), "def-once"),
    "--untidy": (("if-stop",), "claim-probe"),
    "--probes 4": (("claim-num",), "announce"),
    "--steady": (("claim-num",), "claim-probe"),
    "--hasty": (("claim-before-use",), "claim-num"),
    "--whisper": (("announce", "def-once"), "claim-num"),
    "--bare": (("claim-probe",), "announce"),
    "--greedy": (("sel-range",), "claim-probe"),
    "--chatty": (("no-periodic",), "if-stop"),
}


@pytest.mark.long(100)
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found(defect: str, tmp_path: Path) -> None:
    wrong, right = DEFECTS[defect]
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pytest", "conformance", "-q", "-n", "4"]
    command += ["-p", "no:cacheprovider", "--report", str(report)]
    command += ["--dut", f"{sys.executable} -m tests.netns.standin {{ifname}} {defect}"]
    for row in (*wrong, right):
        command += ["--row", row]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, timeout=300)
    assert report.exists(), done.stdout
    rows = json.loads(report.read_text())["rows"]
    results = {row: facts["result"] for row, facts in rows.items()}
    expected = dict.fromkeys(wrong, "falls short") | {right: "holds"}
    assert results == expected, done.stdout
    for row in wrong:
        assert any(case["frames"] for case in rows[row]["cases"]), "no frame that proves it"
    must = any(case["must"] for row in wrong for case in rows[row]["cases"])
    assert done.returncode == (1 if must else 0), done.stdout


@pytest.mark.parametrize("without", ["", "tcx", "bpf"])
def test_the_adapter_takes_it_away(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the rows that hold in the other modes prove nothing."""
    monkeypatch.setenv("WITHOUT", without)
    with Switch() as switch:
        if not has_tcx(switch.namespace):
            pytest.skip(NO_TCX)
        command = "conformance/adapters/autoip {netns} {ifname}"
        with contextlib.closing(Machine(switch, command, REPOSITORY)) as machine:
            device = machine.start()
            device.wait_line("-> probing", PATIENCE)
    reasons = {"tcx": tcx.why(errno.EOPNOTSUPP), "bpf": tcx.why(errno.EPERM)}
    told = [line for line in device.lines if arp_socket.NOT_IN_KERNEL in line]
    assert [line.rpartition(": ")[2] for line in told] == [reasons[one] for one in [without] if one]


def test_what_is_asked_wrongly_is_refused() -> None:
    for words, said in (
        ([], "--dut"),
        (["--dut", "true", "--row", "claim-nothing"], "no such row: claim-nothing"),
        (["--dut", "true", "--about", "nothing.json"], "nothing.json: no such file"),
    ):
        command = [sys.executable, "-m", "pytest", "conformance", "-q", *words]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
        assert done.returncode == pytest.ExitCode.USAGE_ERROR
        assert said in done.stderr
