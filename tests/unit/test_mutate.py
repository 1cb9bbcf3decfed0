"""make mutate: what is changed, and that the list of equivalent mutants is true to the code."""

from __future__ import annotations

from pathlib import Path

from tools import mutate

SOURCE = """
LIMIT: int = 3

class Gate:
    def open(self, at: float | None, *, asked: bool = False) -> bool:
        match at:
            case 0 | 1:
                self.ring(why=at)
        return at is not None and at < LIMIT
"""

CHANGES = [
    "module: LIMIT: int = 3  ->  LIMIT: int = 4",
    "Gate.open: case 0 | 1  ->  case 0 | 1 if False",
    "Gate.open: 0 | 1  ->  1",
    "Gate.open: 0 | 1  ->  0",
    "Gate.open: 0  ->  1",
    "Gate.open: 1  ->  2",
    "Gate.open: self.ring(why=at)  ->  pass",
    "Gate.open: self.ring(why=at)  ->  self.ring()",
    "Gate.open: at is not None and at < LIMIT  ->  at is not None or at < LIMIT",
    "Gate.open: at is not None and at < LIMIT  ->  at < LIMIT",
    "Gate.open: at is not None and at < LIMIT  ->  at is not None",
    "Gate.open: at is not None  ->  at is None",
    "Gate.open: at < LIMIT  ->  at <= LIMIT",
    "Gate.open: at < LIMIT  ->  at >= LIMIT",
]


def test_one_thing_is_changed_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "gate.py"
    file.write_text(SOURCE)
    names = [mutant.name.removeprefix("gate.py ") for mutant in mutate.mutants(file)]
    asked = [name for name in names if "asked: bool=True" in name]
    assert len(asked) == 1
    assert sorted(set(names) - set(asked)) == sorted(CHANGES)


def test_the_list_names_mutants_of_this_tree() -> None:
    """Else a line of it would excuse a change that is not there, or no more."""
    names = {mutant.name for file in mutate.CORE.glob("*.py") for mutant in mutate.mutants(file)}
    listed = mutate.listed_equivalent()
    assert listed
    assert set(listed) <= names
    assert len(listed) == len(set(listed))
