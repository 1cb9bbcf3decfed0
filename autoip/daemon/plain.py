"""Values as JSON has them, and back: for the trace, and for what one program hands over to the next."""

from __future__ import annotations

import dataclasses
import types
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address
from typing import Any, Union, get_args, get_origin, get_type_hints

from autoip.core import arp
from autoip.core.arp import ArpPacket


def plain(value: object) -> object:
    """Return the value as JSON has it; for `default` of json.dumps."""
    match value:
        case bytes():
            return value.hex()
        case IPv4Address():
            return str(value)
        case ArpPacket():
            return value.emit().hex()
        case Enum():
            return value.name
    if dataclasses.is_dataclass(value):
        content = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"is": type(value).__name__, **content}
    raise TypeError(f"JSON cannot have a {type(value).__name__}")


def read(kind: Any, value: Any) -> Any:
    """Return the value of which `plain` made this.

    Args:
        kind: its type, as an annotation has it. A dataclass that has more fields in JSON is read without them; one
            that has fewer gets its defaults.
        value: from JSON.

    Raises:
        ValueError: it is not of this type.
    """
    origin = get_origin(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _read_one_of(get_args(kind), value)
    if origin is tuple and isinstance(value, list):
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            return tuple(read(kinds[0], one) for one in value)
        if len(kinds) == len(value):
            return tuple(map(read, kinds, value))
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif kind in (int, str, bool, types.NoneType) and type(value) is kind:
        return value
    elif kind is bytes and isinstance(value, str):
        return bytes.fromhex(value)
    elif kind is IPv4Address and isinstance(value, str):
        return IPv4Address(value)
    elif kind is ArpPacket and isinstance(value, str):
        if (packet := arp.parse(bytes.fromhex(value))) is not None:
            return packet
    elif isinstance(kind, type) and issubclass(kind, Enum):
        return kind[value] if value in kind.__members__ else kind(value)
    elif dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _read_dataclass(kind, value)
    raise ValueError(f"not a {getattr(kind, '__name__', kind)}: {value!r}")


def _read_one_of(kinds: tuple[Any, ...], value: Any) -> Any:
    for kind in kinds:
        try:
            return read(kind, value)
        except ValueError:
            pass
    raise ValueError(f"none of {kinds}: {value!r}")


def _read_dataclass(kind: Any, value: dict[str, Any]) -> Any:
    if value.get("is") != kind.__name__:
        raise ValueError(f"not a {kind.__name__}: {value.get('is')}")
    try:
        return kind(
            **{
                name: read(hint, value[name])
                for name, hint in _hints(kind).items()
                if name in value
            }
        )
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from error


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
