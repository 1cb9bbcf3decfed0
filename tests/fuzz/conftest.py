"""The hosts and cables of the tests with the real kernel."""

from __future__ import annotations

from tests.netns.conftest import (
    _nothing_left,
    make_autoip,
    make_host,
    port,
    stack,
    switch,
)

__all__ = ["_nothing_left", "make_autoip", "make_host", "port", "stack", "switch"]
