"""The parts of the documents that the code itself tells.

    python -m tests.tools.documents

writes them anew: the tables of JSON fields in the manual, the state diagram in docs/design.md. They stand between lines
with `begin NAME` and `end NAME`. A test says when one is stale.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from autoip import report
from autoip.report import Field

ROOT = Path(__file__).resolve().parents[2]
MANUAL = ROOT / "share" / "autoip.8"


def fields(table: Mapping[str, Field]) -> str:
    """As a list of mdoc(7)."""
    lines = [".Bl -tag -width Ds"]
    for name, field in table.items():
        unit = f", {field.unit}" if field.unit else ""
        lines += [f".It Cm {name} Pq {field.type}{unit}", sentence(field.meaning)]
    return "\n".join([*lines, ".El"])


def words(table: Mapping[str, str]) -> str:
    """As a list of mdoc(7)."""
    lines = [".Bl -tag -width Ds"]
    for name, meaning in table.items():
        lines += [f".It Cm {name}", sentence(meaning)]
    return "\n".join([*lines, ".El"])


def sentence(meaning: str) -> str:
    return f"{meaning[0].upper()}{meaning[1:]}."


PARTS: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    MANUAL: {
        "STATUS": lambda: fields(report.STATUS),
        "STATES": lambda: words(report.STATES),
        "EVENT": lambda: fields(report.EVENT),
        "EVENTS": lambda: words(report.EVENTS),
    },
}


def renewed(path: Path) -> str:
    """The file's text with all its parts as the code has them now."""
    text = path.read_text(encoding="utf-8")
    for name, make in PARTS[path].items():
        pattern = rf"(^[^\n]*\bbegin {name}\b[^\n]*\n)(.*?)(^[^\n]*\bend {name}\b)"
        new = make().replace("\\", "\\\\")
        text, count = re.subn(pattern, rf"\g<1>{new}\n\g<3>", text, flags=re.DOTALL | re.MULTILINE)
        if count != 1:
            raise ValueError(f"{path.name}: {name} stands there {count} times")
    return text


if __name__ == "__main__":
    for document in PARTS:
        document.write_text(renewed(document), encoding="utf-8")
