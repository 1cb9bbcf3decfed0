"""What the attacks have found, and their corpora, stay tests: each input is tried, and a few more."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from attack import chaos, native_targets, page, parsers, results, scale
from attack.native_targets import Finding


@pytest.mark.parametrize("name", parsers.NAMES)
def test_parser(name: str) -> None:
    assert parsers.attack(name, 0, 1) >= 10


@pytest.fixture
def _own_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_targets, "BUILD", tmp_path)


@pytest.mark.usefixtures("_own_build")
@pytest.mark.parametrize("name", native_targets.NAMES)
def test_native(name: str) -> None:
    by = native_targets.compiler(lib_fuzzer=False)
    assert native_targets.attack(name, by, 0, 1) >= 10


@pytest.mark.usefixtures("_own_build")
def test_a_broken_filter_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain loop fails where a rule is wrong, and keeps the input, which then fails again."""
    tree = tmp_path / "tree"
    for folder in ("csrc", "attack/native", "attack/corpus/filter"):
        shutil.copytree(native_targets.ROOT / folder, tree / folder)
    broken = tree / "csrc" / "filter.c"
    text = broken.read_text()
    assert "== address)" in text
    broken.write_text(text.replace("== address)", "== address + 1)", 1))
    monkeypatch.setattr(native_targets, "ROOT", tree)
    monkeypatch.setattr(native_targets, "NATIVE", tree / "attack" / "native")
    by = native_targets.compiler(lib_fuzzer=False)
    with pytest.raises(Finding, match="not true"):
        native_targets.attack("filter", by, 1, 1)
    kept = tmp_path / "found-filter-plain"
    assert kept.stat().st_size > 0
    again = tmp_path / "again"
    again.mkdir()
    shutil.copy(kept, again / "input")
    done = subprocess.run(
        [*native_targets.without_aslr(), tmp_path / "filter-plain", "0", "1", again, "/dev/null"],
        capture_output=True,
    )
    assert done.returncode != 0


def test_of_two_runs_the_longer_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FILE", tmp_path / "results.json")
    results.record("fuzz", {"arp": {"count": 5}, "config": {"count": 1}})
    results.record("fuzz", {"arp": {"count": 4}, "config": {"count": 2}})
    assert results.load() == {"fuzz": {"arp": {"count": 5}, "config": {"count": 2}}}


@pytest.mark.parametrize(
    "case", [scale.Case(60), scale.Case(60, 0.1, 0.1), scale.Case(60, cut=True)]
)
def test_scale(case: scale.Case) -> None:
    row = scale.measure(case, 1)
    times = [at for at, _ in row["curve"]]
    assert times == sorted(times) and times[-1] == row["last"]
    # Three probes and two announcements; whoever is among the first has not sent the last one.
    assert 3 < row["frames"] <= row["frames_most"]


def test_deaf_hosts_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand hosts some want one address, and nobody hears the other."""
    monkeypatch.setattr(scale, "LONGEST", 30.0)
    with pytest.raises(AssertionError, match="not settled"):
        scale.measure(scale.Case(1_000, loss=1.0), 1)


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FILE", tmp_path / "results.json")
    results.record("scale", {case.name: scale.measure(case, 1) for case in (scale.Case(100),)})
    results.record("fuzz", {"arp": {"count": 12345, "unit": "inputs", "engine": "Hypothesis"}})
    results.record("chaos", {"storm": {"count": 7, "unit": "times"}})
    results.record("party", {"rounds": {"count": 3, "slowest": 8.2, "guests": {"autoip": 2}}})
    assert "| ARP packets | 12,345 inputs | `make fuzz`, Hypothesis |" in page.tried()
    assert "| 7 times | `make chaos` |" in page.tried()
    assert "2 autoip on one bridge, 3 rounds" in page.party()
    assert page.scale().splitlines()[-1].startswith("| 100 hosts | ")
    assert page.picture().count("<polyline") == 1


def test_every_attack_has_its_words() -> None:
    assert {*native_targets.NAMES, *parsers.NAMES, *chaos.TRIALS} == set(page.WHAT)
