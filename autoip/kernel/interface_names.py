"""The names of the interfaces in this network namespace, for commands that must start fast."""

from __future__ import annotations


def exists(name: str) -> bool:
    """Return whether there is an interface of this name (or alternative name) now."""
    import socket  # takes milliseconds, and few command lines have a name that must be looked up

    try:
        socket.if_nametoindex(name)
    except (OSError, ValueError):  # ValueError: a NUL
        return False
    return True


def proper(name: str) -> str:
    """Return the name of the interface that has this alternative name; the same name if none has."""
    import socket

    try:
        return socket.if_indextoname(socket.if_nametoindex(name))
    except (OSError, ValueError):
        return name


def names() -> list[str]:
    """Return the names of all interfaces, in alphabetical order."""
    import socket

    return sorted(name for _, name in socket.if_nameindex())
