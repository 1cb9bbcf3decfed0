"""The conformance suite finds what is wrong: a program with one defect falls short in just the rows concerned."""

from __future__ import annotations

import contextlib
import errno
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from autoip.kernel import arp_socket, tcx
from conformance.device import CAPABILITIES, Machine
from conformance.rows import ROWS
from lab import Switch

from .helpers import NETNS, NO_TCX, PATIENCE, has_tcx

pytestmark = NETNS

REPOSITORY = Path(__file__).resolve().parents[2]

DEFECTS = {
    # defect: (rows in which it falls short, a row that holds nevertheless)
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
    "--prompt": (("claim-wait",), "claim-num"),
    "--echoing": (("claim-echo",), "sel-range"),
    "--jumpy": (("claim-unicast-probe",), "def-once"),
    "--jumpy --meek": (("def-probed",), "announce"),
    "--tired": (("def-again",), "def-once"),
    "--narrow": (("if-alias",), "claim-num"),
    "--grabbing": (("fwd-source",), "if-alias"),
    "--sweeping": (("co-dhcp",), "fwd-onlink"),
    "--final": (("co-lease", "co-lost"), "def-once"),
}
LACKS = (
    *("sel-seed", "sel-memory", "claim-rate", "def-reset", "def-broadcast", "if-wait", "if-gone"),
    *("if-carrier", "if-mac", "if-removed", "if-one", "fwd-several"),
)
"""Rows in which the program falls short without any defect."""
PROMISES = ("sel-ip", "def-abandon", "if-many", "fwd-onlink", "fwd-any")
"""Rows in which it falls short where its description promises that it can do all of CAPABILITIES."""
UNTESTABLE = {"if-resume"}


def judge(
    tmp_path: Path, defect: str, wrong: Sequence[str], right: str, can: Sequence[str] = ()
) -> None:
    """Run the rows on the program with the defect: in those that are wrong it falls short, the other holds."""
    report, about = tmp_path / "report.json", tmp_path / "about.json"
    about.write_text(json.dumps({"name": "standin", "can": [*can]}))
    command = [sys.executable, "-m", "pytest", "conformance", "-q", "-n", "4"]
    command += ["-p", "no:cacheprovider", "--report", str(report), "--about", str(about)]
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


@pytest.mark.long(100)
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found(defect: str, tmp_path: Path) -> None:
    judge(tmp_path, defect, *DEFECTS[defect])


@pytest.mark.long(130)
def test_what_is_lacking_is_found(tmp_path: Path) -> None:
    judge(tmp_path, "", LACKS, "claim-unicast-probe")


@pytest.mark.long(100)
def test_a_promise_that_is_not_kept_is_found(tmp_path: Path) -> None:
    judge(tmp_path, "", PROMISES, "def-once", [*CAPABILITIES])


def test_a_candidate_that_must_be_refused(tmp_path: Path) -> None:
    judge(tmp_path, "--obedient", ["sel-metadata"], "sel-ip", ["candidate"])


def test_each_row_is_shown_falling_short() -> None:
    shown = {"sel-metadata", *LACKS, *PROMISES}.union(*(wrong for wrong, _ in DEFECTS.values()))
    assert shown == ROWS.keys() - UNTESTABLE


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
