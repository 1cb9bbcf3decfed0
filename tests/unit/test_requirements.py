"""Each requirement is proved without a network and on the wire; each id that a test names is one.

A test names the ids of what it proves at the head of its docstring (`def-once, claim-echo: ...`) or, a single one, at
the head of its name (`test_def_once_...`); a module's docstring names those of all its tests, a case of the conformance
suite its row.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.rows import ROWS

ROOT = Path(__file__).resolve().parents[2]

OURS = {
    "def-bounded": "what is answered by broadcast is bounded in rate",
    "if-master": "an interface with a master has no address of its own",
    "co-session": "a connection underway keeps the address beside a lease",
    "co-route": "no route of a lease outlives the lease because of our address",
}
"""Requirements that are no rows of the conformance suite: they cannot be asked of every program."""

ON_THE_WIRE_ALONE = {
    "if-alias": "the attributes are the kernel's",
    "co-dhcp": "what a DHCP client has set up is the kernel's",
    "def-bounded": "the bound is the helper's, proved by tests/c/test_listener.c",
}
"""Where there is nothing to prove without a kernel, and why."""

IN_DOCSTRING = re.compile(r"(?:[a-z]+-[a-z-]+|announce)(?:, (?:[a-z]+-[a-z-]+|announce))*(?=: )")
FAMILIES = ("sel", "claim", "no", "def", "if", "fwd", "co")
REQUIREMENTS = {*ROWS, *OURS}


def named(text: str | None) -> set[str]:
    """The ids at the head of a docstring."""
    found = IN_DOCSTRING.match(text or "")
    names = set(found[0].split(", ")) if found else set()
    return {name for name in names if name == "announce" or name.split("-")[0] in FAMILIES}


def by_name(function: str) -> set[str]:
    """The id at the head of a test's name, the longest one if there are two."""
    name = function.removeprefix("test_").replace("_", "-") + "-"
    found = sorted((one for one in REQUIREMENTS if name.startswith(f"{one}-")), key=len)
    return set(found[-1:])


def rows(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """The row of a case of the conformance suite."""
    marks = [mark for mark in function.decorator_list if isinstance(mark, ast.Call)]
    first = [mark.args[0] for mark in marks if ast.unparse(mark.func) == "pytest.mark.row"]
    return {str(argument.value) for argument in first if isinstance(argument, ast.Constant)}


def proofs(path: Path) -> Iterator[tuple[str, str]]:
    """(id, test) for all tests of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    of_all = named(ast.get_docstring(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[:5] == "test_":
            ids = of_all | named(ast.get_docstring(node)) | by_name(node.name) | rows(node)
            yield from ((one, f"{path.relative_to(ROOT)}::{node.name}") for one in ids)


def proved(*folders: str) -> dict[str, list[str]]:
    """For each id its tests in those folders."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for folder in folders:
        # fallback.py has tests to be had by inheritance.
        for path in [*(ROOT / folder).glob("test_*.py"), *(ROOT / folder).glob("fallback.py")]:
            for one, test in proofs(path):
                found[one].append(test)
    return found


UNIT = proved("tests/unit")
WIRE = proved("conformance", "tests/netns", "tests/booted")


@pytest.mark.parametrize("one", sorted(REQUIREMENTS))
def test_each_is_proved_at_both_levels(one: str) -> None:
    assert WIRE.get(one), "no test on the wire names it"
    assert bool(UNIT.get(one)) != (one in ON_THE_WIRE_ALONE), UNIT.get(one, "no unit test names it")


def test_each_row_has_its_case() -> None:
    assert proved("conformance").keys() == ROWS.keys()


def test_what_is_named_is_a_requirement() -> None:
    unknown = (UNIT.keys() | WIRE.keys()) - REQUIREMENTS
    assert not unknown, {one: UNIT.get(one, []) + WIRE.get(one, []) for one in unknown}
    assert set(ON_THE_WIRE_ALONE) <= REQUIREMENTS and not OURS.keys() & ROWS.keys()


def test_how_a_test_names_its_ids() -> None:
    assert named("def-once, announce: as ever") == {"def-once", "announce"}
    assert named("If it fails: def-once") == named(None) == named("pre-down: no family") == set()
    assert by_name("test_claim_num_and_wait") == {"claim-num"}
    assert by_name("test_claim_echo_sibling") == {"claim-echo"}
    assert by_name("test_definite") == set()
