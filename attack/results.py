"""What the attacks tried, how often, with what result: in `attack/results.json`, for docs/reliability.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent / "results.json"

Results = dict[str, dict[str, dict[str, Any]]]
"""By attack and by what was attacked: `count`, `unit`, `seconds`, and whatever else is told."""


def load() -> Results:
    """What is recorded."""
    found: Results = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    return found


def record(attack: str, rows: dict[str, dict[str, Any]]) -> None:
    """Record what was tried; of two runs the one that tried more stays."""
    results = load()
    for name, row in rows.items():
        before = results.setdefault(attack, {}).get(name)
        if before is None or row["count"] >= before["count"]:
            results[attack][name] = row
    FILE.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
