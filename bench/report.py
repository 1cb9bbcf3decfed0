"""The result of a benchmark, and its output."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

WIDTH = 100


@dataclass(frozen=True, slots=True)
class Target:
    """One figure and its target.

    Attributes:
        figure: the name of the figure.
        limit: the target.
        measured: in the same unit; NaN if it could not be measured.
        unit: of both.
        at_least: whether more is better.
    """

    figure: str
    limit: float
    measured: float
    unit: str
    at_least: bool = False

    @property
    def reached(self) -> bool:
        if math.isnan(self.measured):
            return False
        if self.at_least:
            return self.measured >= self.limit
        return self.measured <= self.limit

    def cells(self) -> tuple[str, ...]:
        sign = ">=" if self.at_least else "<="
        unit = f" {self.unit}".rstrip()
        return (
            self.figure,
            f"{sign} {number(self.limit)}{unit}",
            f"{number(self.measured)}{unit}",
            "reached" if self.reached else "MISSED",
        )


@dataclass(slots=True)
class Result:
    """One benchmark's outcome.

    Attributes:
        name: of the benchmark.
        title: one line.
        head: names of the table's columns.
        rows: cells; the first column is left-aligned.
        targets: figures with their targets.
        notes: the method, and what a reader needs for the figures.
        numbers: all measurements, for --json.
    """

    name: str
    title: str
    head: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        parts = [f"== {self.name}: {self.title}", *table([self.head, *self.rows])]
        if self.targets:
            head = ("target", "says", "measured", "")
            parts += ["", *table([head, *(target.cells() for target in self.targets)])]
        for note in self.notes:
            parts += textwrap.wrap(note, WIDTH, initial_indent="  * ", subsequent_indent="    ")
        return "\n".join(parts)

    def as_json(self) -> dict[str, Any]:
        targets = [{**asdict(target), "reached": target.reached} for target in self.targets]
        return {"title": self.title, "targets": targets, "numbers": self.numbers}


def number(value: float) -> str:
    """Return three significant digits, or all of a larger whole number."""
    if math.isnan(value):
        return "not measured"
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with aligned columns; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    lines.insert(1, "  " + "  ".join("-" * width for width in widths))
    return lines
