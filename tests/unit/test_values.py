"""`values.dataclass` makes what `dataclasses.dataclass` makes, without compiling anything."""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from autoip import values

Kind = Callable[..., Any]


def body(of: str) -> type:
    """A class to be decorated: its fields, and a method."""

    class Made:
        """A value."""

        first: int
        second: str = "two"
        third: list[int] = dataclasses.field(default_factory=list)
        beside: int = dataclasses.field(default=0, compare=False)

        def sum(self) -> int:
            return self.first + len(self.second)

    class Empty:
        """Nothing."""

    return {"made": Made, "empty": Empty}[of]


def both(of: str, frozen: bool) -> tuple[Kind, Kind]:
    """The same class, as it is made here and by the library."""
    ours: Any = values.dataclass
    return (
        ours(frozen=frozen, slots=True)(body(of)),
        dataclasses.dataclass(frozen=frozen, slots=True)(body(of)),
    )


@pytest.fixture(params=[True, False], ids=["frozen", "changeable"])
def kinds(request: pytest.FixtureRequest) -> tuple[Kind, Kind]:
    return both("made", request.param)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1,), {}),
        ((1, "b", [3], 4), {}),
        ((1, "b"), {"beside": 5}),
        ((), {"third": [6], "first": 1}),
    ],
)
def test_same_content(kinds: tuple[Kind, Kind], args: tuple[Any, ...], kwargs: Any) -> None:
    ours, theirs = (kind(*args, **kwargs) for kind in kinds)
    assert repr(ours) == repr(theirs)
    assert dataclasses.astuple(ours) == dataclasses.astuple(theirs)
    assert [f.name for f in dataclasses.fields(ours)] == ["first", "second", "third", "beside"]
    assert ours.sum() == theirs.sum()
    assert type(ours).__match_args__ == type(theirs).__match_args__
    assert not hasattr(ours, "__dict__")
    assert dataclasses.is_dataclass(ours)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((), {"second": "b"}),
        ((1, "b", [3], 4, 5), {}),
        ((1,), {"first": 1}),
        ((1,), {"fourth": 1}),
        ((1, "b", [3], 4), {"first": 1}),
        ((1, "b", [3], 4), {"fourth": 1}),
    ],
    ids=[
        "none",
        "one is missing",
        "too many",
        "one twice",
        "one too many by name",
        "complete, one twice",
        "complete, one too many by name",
    ],
)
def test_same_refusals(kinds: tuple[Kind, Kind], args: tuple[Any, ...], kwargs: Any) -> None:
    for kind in kinds:
        with pytest.raises(TypeError):
            kind(*args, **kwargs)


def test_a_default_is_made_for_each(kinds: tuple[Kind, Kind]) -> None:
    for kind in kinds:
        kind(1).third.append(1)
        assert kind(1).third == []


def test_same_equality(kinds: tuple[Kind, Kind]) -> None:
    for kind in kinds:
        assert kind(1, "b") == kind(1, "b", beside=7)
        assert kind(1, "b") != kind(1, "c")
        assert kind(1, "b") != (1, "b", [], 0)
    assert kinds[0](1) != kinds[1](1)


@pytest.mark.parametrize("frozen", [True, False])
def test_no_fields(frozen: bool) -> None:
    for kind in both("empty", frozen):
        assert kind() == kind()
        assert repr(kind()).endswith("Empty()")
        with pytest.raises(TypeError):
            kind(1)


def test_frozen() -> None:
    for kind in both("made", True):
        made = kind(1, "b", ())
        assert hash(made) == hash(kind(1, "b", (), 9))
        assert dataclasses.replace(made, first=2) == kind(2, "b", ())
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.first = 2
        with pytest.raises(dataclasses.FrozenInstanceError):
            del made.first
        assert made.first == 1


def test_changeable() -> None:
    for kind in both("made", False):
        made = kind(1)
        made.first = 2
        assert made == kind(2)
        with pytest.raises(TypeError, match="unhashable"):
            hash(made)


def test_a_method_of_the_class_stays() -> None:
    class Own:
        """It knows its text."""

        one: int

        def __repr__(self) -> str:
            return f"<{self.one}>"

    ours: Any = values.dataclass
    assert repr(ours(slots=True)(Own)(3)) == "<3>"


def test_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the start would last as long as with the library's own."""
    compiled = []
    monkeypatch.setattr(builtins, "exec", lambda *_: compiled.append(1))
    ours: Any = values.dataclass
    ours(frozen=True, slots=True)(body("made"))
    assert not compiled
    with contextlib.suppress(KeyError):  # of what the text should have made
        dataclasses.dataclass(frozen=True, slots=True)(body("made"))
    assert compiled
