"""The conformance suite's reports and page, without a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from conformance import page
from conformance.device import CAPABILITIES, read_about
from conformance.report import Facts, dump, merge
from conformance.rows import ROWS
from conformance.verdict import ERROR, HOLDS, NOT_APPLICABLE, SHORT

ADAPTERS = page.HERE / "adapters"


def fact(row: str, result: str, seen: str, *, frames: Sequence[str] = ()) -> Facts:
    return {
        "row": row,
        "case": f"{seen}-case",
        "result": result,
        "seen": seen,
        "frames": list(frames),
        "must": True,
        "seconds": 1.0,
    }


def test_the_page_is_not_stale() -> None:
    """If it is: python -m conformance.page."""
    text = page.render(page.load(), page.load(names=page.MODES))
    assert page.PAGE.read_text(encoding="utf-8") == text


def test_the_page_has_every_row_and_program() -> None:
    reports = page.load()
    text = page.render(reports)
    table = [line for line in text.splitlines() if line.startswith("| [")]
    assert len(table) == len(ROWS)
    for line, row in zip(table, ROWS, strict=True):
        assert line.startswith(f"| [{row}](#{row}) |") and f"\n### {row}\n" in text
        assert line.count("|") == 4 + len(page.PROGRAMS)
    assert sorted(page.PROGRAMS) == sorted(path.stem for path in ADAPTERS.glob("*.json"))
    assert [report["program"]["name"] for report in reports][:2] == ["autoip", "avahi-autoipd"]
    for report in reports:
        for facts in report["rows"].values():
            for case in facts["cases"]:
                assert case["seen"], case
                # Where there is no interface there are no frames to prove it.
                visible = case["result"] == SHORT and case["case"] != "test_no_interface"
                assert visible == bool(case["frames"]), case


def test_the_worst_case_decides() -> None:
    found = [
        fact("claim-num", HOLDS, "a"),
        fact("claim-num", SHORT, "b"),
        fact("claim-num", NOT_APPLICABLE, "c"),
        fact("announce", NOT_APPLICABLE, "d"),
        fact("announce", HOLDS, "e"),
        fact("sel-ip", NOT_APPLICABLE, "f"),
        fact("if-one", SHORT, "g"),
        fact("if-one", ERROR, "h"),
    ]
    merged = {row: (facts["result"], facts["seen"]) for row, facts in merge(found).items()}
    assert merged == {
        "sel-ip": (NOT_APPLICABLE, "f"),
        "claim-num": (SHORT, "b"),
        "announce": (HOLDS, "e"),
        "if-one": (ERROR, "h"),
    }
    assert list(merged) == [row for row in ROWS if row in merged]


def test_a_report_that_lacks_a_row_is_refused(tmp_path: Path) -> None:
    about = read_about("true", None)
    every = [fact(row, HOLDS, "seen") for row in ROWS]

    def keep(found: list[Facts]) -> None:
        for name in page.PROGRAMS:
            (tmp_path / f"{name}.json").write_text(dump(about, found))

    with pytest.raises(page.BadReport, match="is missing"):
        page.load(tmp_path)
    keep(every)
    assert len(page.load(tmp_path)) == len(page.PROGRAMS)
    keep(every[1:])
    with pytest.raises(page.BadReport, match="sel-range"):
        page.load(tmp_path)
    keep([*every[1:], fact("sel-range", ERROR, "no such thing")])
    with pytest.raises(page.BadReport, match="the suite failed in"):
        page.load(tmp_path)


def test_some_rows_measured_again() -> None:
    """The others stay, in their place, and the report has the dates of both."""
    about = read_about("true", None)
    before = json.loads(dump(about, [fact("announce", HOLDS, "old"), fact("if-one", HOLDS, "old")]))
    before["date"] = "2020-01-02"
    found = [fact("if-one", SHORT, "new"), fact("sel-ip", HOLDS, "new")]
    report = json.loads(dump(about, found, before))
    rows = {row: facts["seen"] for row, facts in report["rows"].items()}
    assert [*rows.items()] == [("sel-ip", "new"), ("announce", "old"), ("if-one", "new")]
    first, second = report["date"].split(", ")
    assert first == "2020-01-02" < second and report["kernel"] == before["kernel"]


def test_what_a_shortfall_shows(tmp_path: Path) -> None:
    found = [fact(row, HOLDS, "seen") for row in ROWS]
    found[0] = fact("sel-range", SHORT, "a|b <c>", frames=["0.000 -> probe"])
    for name in page.PROGRAMS:
        (tmp_path / f"{name}.json").write_text(dump(read_about("true", None), found))
    text = page.render(page.load(tmp_path))
    assert "| **falls short** |" in text
    assert "true: a\\|b &lt;c&gt;</summary>\n\n```\n0.000 -> probe\n```" in text


@pytest.mark.parametrize("path", sorted(ADAPTERS.glob("*.json")), ids=lambda path: path.stem)
def test_adapters_say_what_they_can(path: Path) -> None:
    assert path.with_suffix("").stat().st_mode & 0o111
    about = read_about(f"{path.with_suffix('')} {{netns}} {{ifname}}", None)
    said = [*about.can, *about.always, *about.cannot]
    assert sorted(said) == sorted(CAPABILITIES), "each capability once"


def test_a_wrong_word_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "about.json"
    file.write_text(json.dumps({"name": "x", "can": ["fly"]}))
    with pytest.raises(ValueError, match="fly"):
        read_about("true", str(file))
    assert read_about("/bin/some-program {ifname}", None).name == "some-program"
