"""docs/conformance.md, made from the reports beside this file.

python -m conformance.page
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .report import FORMAT
from .rows import ROWS
from .verdict import ERROR, HOLDS, NOT_APPLICABLE, SHORT

HERE = Path(__file__).resolve().parent
REPORTS = HERE / "reports"
PAGE = HERE.parent / "docs" / "conformance.md"

PROGRAMS = ("autoip", "avahi-autoipd", "dhcpcd", "networkd", "networkmanager")
"""Names of adapters and of reports, in the order of the columns."""
MODES = {
    "autoip-without-tcx": "as on a kernel from before Linux 6.6, where its thread defends",
    "autoip-without-bpf": "without CAP_BPF, where its thread also repeats by broadcast the kernel's answers",
}
"""Names of reports of autoip with less than the kernel can give, each with what that means."""

_HEAD = """\
# What programs for IPv4 link-local addresses do on the wire

<!-- Made by `make conformance` from measured reports. Do not edit: the next run writes it anew. -->

Each program ran in network namespaces, with a scripted neighbour at the other end of its cable; the stamps are the
kernel's. The rows are requirements of RFC 3927, with the level and section (M = MUST, S = SHOULD; A = what the AutoIP
module did; B = looked at by the Bonjour Conformance Test; users = people asked for it). The programs ran as Debian
has them, with link-local addressing alone. A row's name leads to what was seen, and to the frames that prove a
shortfall: `->` is what the program's host sent, `<-` what it received; times are in seconds.
"""

_CELLS = {HOLDS: "holds", SHORT: "**falls short**", NOT_APPLICABLE: "not applicable", ERROR: "?"}


class BadReport(ValueError):
    """A report cannot be used; the message has the reason."""


def load(folder: Path = REPORTS, names: Iterable[str] = PROGRAMS) -> list[dict[str, Any]]:
    """Return reports, by default those of all programs, in the order of the columns. Raises BadReport."""
    reports = []
    for name in names:
        path = folder / f"{name}.json"
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BadReport(f"{path} is missing") from None
        missing = ROWS.keys() - report["rows"].keys()
        wrong = [row for row, facts in report["rows"].items() if facts["result"] == ERROR]
        if report["format"] != FORMAT or missing or wrong:
            raise BadReport(f"{path}: missing {sorted(missing)}, the suite failed in {wrong}")
        reports.append(report)
    return reports


def render(reports: Sequence[Mapping[str, Any]], modes: Iterable[Mapping[str, Any]] = ()) -> str:
    """Return the page.

    Args:
        reports: of PROGRAMS.
        modes: reports of MODES, or none.
    """
    names = [report["program"]["name"] for report in reports]
    lines = [_HEAD, f"| row | level | what | {' | '.join(names)} |"]
    lines.append("|---" * (3 + len(names)) + "|")
    versions = [f"{report['program']['version']}, {report['date']}" for report in reports]
    lines.append(f"| | | version, measured | {' | '.join(versions)} |")
    for row, facts in ROWS.items():
        cells = [_CELLS[report["rows"][row]["result"]] for report in reports]
        lines.append(f"| [{row}](#{row}) | {facts.level} | {facts.text} | {' | '.join(cells)} |")
    lines.append(_counts(reports))
    kernels = sorted({kernel for report in reports for kernel in report["kernel"].split(", ")})
    lines += ["", f"Kernel {', '.join(kernels)}.", ""]
    lines += [_mode(what, report) for what, report in zip(MODES.values(), modes, strict=False)]
    lines += ["## What was seen", ""]
    for row, facts in ROWS.items():
        lines += [f"### {row}", "", f"{facts.text[0].upper()}{facts.text[1:]} ({facts.level}).", ""]
        lines += _details(row, reports)
    return "\n".join(lines).rstrip("\n") + "\n"


def _counts(reports: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for report in reports:
        results = [facts["result"] for facts in report["rows"].values()]
        cells.append(f"{results.count(HOLDS)} / {results.count(SHORT)}")
    return f"| | | rows that hold / fall short | {' | '.join(cells)} |"


def _mode(what: str, report: Mapping[str, Any]) -> str:
    results = {row: facts["result"] for row, facts in report["rows"].items()}
    short = [f"[{row}](#{row})" for row in results if results[row] == SHORT]
    holds = f"{[*results.values()].count(HOLDS)} rows hold"
    return f"autoip {what} ({report['date']}): {holds}, short: {', '.join(short) or 'none'}.\n"


def _details(row: str, reports: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    proofs = []
    for report in reports:
        facts, name = report["rows"][row], report["program"]["name"]
        yield f"- {name}: {facts['result']}: {_safe(facts['seen'])}"
        for case in facts["cases"]:
            if case["result"] == SHORT:
                proofs += [f"<details><summary>{name}: {_safe(case['seen'])}</summary>", "", "```"]
                proofs += [
                    *(case["frames"] or ["(no frame, no address)"]),
                    "```",
                    "",
                    "</details>",
                    "",
                ]
    yield ""
    yield from proofs


def _safe(text: str) -> str:
    """Escape the characters of Markdown."""
    for char in "\\`*_<>|[]":
        text = text.replace(
            char, f"\\{char}" if char not in "<>" else {"<": "&lt;", ">": "&gt;"}[char]
        )
    return text


if __name__ == "__main__":
    PAGE.write_text(render(load(), load(names=MODES)), encoding="utf-8")
