"""What a test needs beyond Python: without it the test is skipped with the reason (under CI that is a failure)."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import pytest

from lab import LabError, Namespace
from lab.programs import find_program

requires_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def requires_program(program: str, package: str) -> pytest.MarkDecorator:
    """The program in the path or in the places of system programs; `package` is Debian's, for the reason."""
    return pytest.mark.skipif(
        find_program(program) is None, reason=f"needs {program} (Debian package {package})"
    )


def _namespaces() -> None:
    with Namespace():
        pass


def _bridge() -> None:
    with Namespace() as namespace:
        namespace.ip("link add name sw type bridge")


def _veth() -> None:
    with Namespace() as namespace:
        namespace.ip("link add name v0 type veth peer name v1")


def _macvlan() -> None:
    with Namespace() as namespace:
        namespace.ip("link add name v0 type veth peer name v1")
        namespace.ip("link add link v0 name m0 type macvlan mode bridge")


def _nft_netdev() -> None:
    with Namespace() as namespace:
        rules = (
            "add table netdev t\n"
            "add chain netdev t c { type filter hook ingress device lo priority 0; }\n"
            "add rule netdev t c numgen random mod 100 < 50 drop\n"
        )
        namespace.run("nft", "-f", "-", stdin=rules)


FEATURES: dict[str, Callable[[], None]] = {
    "namespaces": _namespaces,
    "veth": _veth,
    "bridge": _bridge,
    "macvlan": _macvlan,
    "nft-netdev": _nft_netdev,
}


@functools.cache
def missing_feature(feature: str) -> str | None:
    """Why the kernel (or its tool) cannot do it, found out by trying; None if it can."""
    try:
        FEATURES[feature]()
    except (LabError, OSError) as error:
        return str(error)
    return None


def requires_kernel_feature(feature: str) -> pytest.MarkDecorator:
    """One of `FEATURES`."""
    if os.geteuid() != 0:
        return requires_root
    why = missing_feature(feature)
    return pytest.mark.skipif(why is not None, reason=f"needs {feature} of the kernel: {why}")
