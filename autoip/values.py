"""`dataclass`, as that of the standard library, for classes with slots.

The library's own writes the methods of each class as source text and compiles them at each import: that was a quarter
of the start. Here they come compiled with this file. Base classes, `__post_init__` and fields by keyword alone are not
provided for; and nobody copies a frozen one: there is `replace`.
"""

from __future__ import annotations

import dataclasses
from operator import attrgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass
    from typing import Any
else:

    def dataclass(*, slots: bool, frozen: bool = False) -> Callable[[type], type]:
        """Complete a class as `dataclasses.dataclass` does with the same arguments."""
        begun = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots)
        return lambda kind: _complete(begun(kind), frozen)


__all__ = ["dataclass"]


def _complete(kind: type[Any], frozen: bool) -> type[Any]:
    """Give a class, of which the library has made the fields and slots, its methods."""
    fields = dataclasses.fields(kind)
    names = [field.name for field in fields]
    setters = [getattr(kind, name).__set__ for name in names]
    compared = [field.name for field in fields if field.compare]
    content = attrgetter(*compared) if compared else lambda _: ()
    absent = dataclasses.MISSING
    defaults = {one.name: one.default for one in fields if one.default is not absent}
    makers = [
        (one.name, one.default_factory) for one in fields if one.default_factory is not absent
    ]

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs or len(args) != len(names):
            args = in_order(args, kwargs)
        for put, value in zip(setters, args, strict=True):
            put(self, value)

    def in_order(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        given = dict(zip(names, args, strict=False)) | kwargs if args else kwargs
        made = {name: make() for name, make in makers if name not in given}
        values = {**defaults, **made, **given}
        if wrong := values.keys() ^ names:
            raise TypeError(f"{kind.__qualname__}: not a field, or missing: {', '.join(wrong)}")
        if len(given) < len(args) + len(kwargs):
            raise TypeError(f"{kind.__qualname__}: too many values, or one twice")
        return tuple([values[name] for name in names])

    def text(self: Any) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{kind.__qualname__}({shown})"

    def equal(self: Any, other: object) -> bool:
        return content(self) == content(other) if other.__class__ is kind else NotImplemented

    methods: dict[str, Any] = {"__repr__": text, "__eq__": equal, "__hash__": None}
    if frozen:
        methods |= {"__setattr__": _refuse, "__delattr__": _refuse}
        methods["__hash__"] = lambda self: hash(content(self))
    for name, method in methods.items():
        if name not in kind.__dict__:
            setattr(kind, name, method)
    kind.__init__ = init
    return kind


def _refuse(self: object, name: str, *_: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot change {name!r} of {self!r}")
