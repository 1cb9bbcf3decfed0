"""The report of a run: the results, case by case and row by row."""

from __future__ import annotations

import datetime as dt
import json
import platform
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from .device import About
from .rows import ROWS
from .verdict import WORST_FIRST

FORMAT = 1


class Facts(TypedDict):
    """The result of one case."""

    row: str
    case: str
    result: str
    seen: str
    frames: list[str]
    must: bool
    seconds: float


def merge(found: Iterable[Facts]) -> dict[str, dict[str, Any]]:
    """Return row by row, in the order of the requirements: result, observations, the cases."""
    rows: dict[str, list[Facts]] = {row: [] for row in ROWS}
    for facts in sorted(found, key=lambda facts: facts["case"]):
        rows[facts["row"]].append(facts)
    return {row: _row(cases) for row, cases in rows.items() if cases}


def _row(cases: list[Facts]) -> dict[str, Any]:
    result = min((facts["result"] for facts in cases), key=WORST_FIRST.index)
    seen = dict.fromkeys(
        facts["seen"] for facts in cases if facts["result"] == result and facts["seen"]
    )
    return {"result": result, "seen": "; ".join(seen), "cases": cases}


def dump(about: About, found: Iterable[Facts], before: Mapping[str, Any] | None = None) -> str:
    """Return the report as JSON.

    Args:
        about: the program.
        found: the cases that ran.
        before: a report of the same program, whose other rows stay; the dates and kernels are then those of both.
    """
    rows, now = merge(found), dt.datetime.now(dt.timezone.utc).date().isoformat()
    when, kernel = {now}, {platform.release()}
    if before is not None:
        rows = {
            row: rows.get(row) or before["rows"][row]
            for row in ROWS
            if row in {*rows, *before["rows"]}
        }
        when.update(before["date"].split(", "))
        kernel.update(before["kernel"].split(", "))
    report: Mapping[str, Any] = {
        "format": FORMAT,
        "program": about.describe(),
        "date": ", ".join(sorted(when)),
        "kernel": ", ".join(sorted(kernel)),
        "rows": rows,
    }
    return json.dumps(report, indent=1) + "\n"
