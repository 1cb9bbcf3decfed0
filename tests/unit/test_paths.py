"""paths: what the environment says about directories, and the number of the network namespace."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import pytest

from autoip.paths import network_namespace, runtime_directory, state_directory


@pytest.mark.parametrize(
    ("directory", "variable", "default"),
    [
        (runtime_directory, "RUNTIME_DIRECTORY", "/run/autoip"),
        (state_directory, "STATE_DIRECTORY", "/var/lib/autoip"),
    ],
)
def test_directories(
    directory: Callable[[Mapping[str, str]], str], variable: str, default: str
) -> None:
    assert directory({}) == default
    assert directory({variable: ""}) == default
    assert directory({variable: "/a b:/c"}) == "/a b"


def test_network_namespace() -> None:
    assert os.readlink("/proc/self/ns/net") == f"net:[{network_namespace()}]"
