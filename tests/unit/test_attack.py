"""What the attacks have found, and their corpora, stay tests: each input is tried, and a few more."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from attack import native_targets, parsers, results
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
