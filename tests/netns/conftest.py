"""Hosts and cables for the tests with the real kernel."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import Daemon, Namespace, Port, Switch, leftover_folders, leftovers, tcx
from lab.daemon import REPOSITORY

from .helpers import NO_TCX, autoip_command, has_tcx, python_for_all
from .hooked import Hooked, MakeHooked, hooked

__all__ = ["MakeDaemon", "MakeHost", "autoip_command"]


pytest.register_assert_rewrite("tests.netns.fallback")


@pytest.fixture(scope="session", autouse=True)
def _nothing_left() -> Iterator[None]:
    """After the last test of a worker nothing of the laboratory may be left."""
    yield
    left = leftovers() + leftover_folders()
    assert not left, "\n".join(["left behind:", *left])


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """Closes at the end of the test, in reverse order, whatever is entered into it."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def switch() -> Iterator[Switch]:
    with Switch() as switch:
        yield switch


MakeHost = Callable[..., Port]


@pytest.fixture
def make_host(stack: contextlib.ExitStack, switch: Switch) -> MakeHost:
    """`make_host(**of Switch.attach)`: a new host with a cable to the test's switch."""

    def make(name: str = "eth0", **options: object) -> Port:
        host = stack.enter_context(Namespace("host"))
        return switch.attach(host, name, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def port(make_host: MakeHost) -> Port:
    """One host, `eth0`, on one cable."""
    return make_host()


MakeDaemon = Callable[..., Daemon]


@pytest.fixture
def make_autoip(stack: contextlib.ExitStack) -> MakeDaemon:
    """`make_autoip(port, *arguments)`: autoip for that host's interface, not started yet."""

    def make(port: Port, *arguments: str) -> Daemon:
        command = [*autoip_command(), "run", port.name, *arguments]
        return stack.enter_context(Daemon(port.host, port.name, command))

    return make


@pytest.fixture(params=["tcx", "clsact"])
def by(request: pytest.FixtureRequest, switch: Switch) -> str:
    """What the kernel has for our programs: one from before Linux 6.6 has no tcx.

    Then the helper's thread defends, and the program at the egress is a filter of tc.
    """
    mode: str = request.param
    if mode == "tcx" and not has_tcx(switch.namespace):
        pytest.skip(NO_TCX)
    return mode


@pytest.fixture
def make_clsact(make_autoip: MakeDaemon) -> MakeDaemon:
    """As `make_autoip`, on a kernel without tcx."""

    def make(port: Port, *arguments: str) -> Daemon:
        daemon = make_autoip(port, *arguments)
        daemon.command[:0] = tcx.WITHOUT
        return daemon

    return make


@pytest.fixture
def make_by(by: str, make_autoip: MakeDaemon, make_clsact: MakeDaemon) -> MakeDaemon:
    """As `make_autoip`, on such a kernel."""
    return make_autoip if by == "tcx" else make_clsact


@pytest.fixture
def make_hooked(stack: contextlib.ExitStack, tmp_path: Path) -> MakeHooked:
    numbers = itertools.count()

    def make(host: Namespace) -> Hooked:
        folder = tmp_path / f"hooked{next(numbers)}"
        folder.mkdir()
        made = hooked(host, folder)
        stack.enter_context(made.syslog)
        return made

    return make


@pytest.fixture(scope="session")
def installed() -> Iterator[Path]:
    """autoip as it is installed, where the daemon's user finds it after a reload."""
    text = (REPOSITORY / "share" / "autoip.in").read_text().replace("@PROGRAMDIR@", str(REPOSITORY))
    words = [word for word in python_for_all() if word != "env"]
    options = [] if len(words) > 1 else ["-I"]
    with tempfile.TemporaryDirectory(prefix="autoip-test-") as folder:
        Path(folder).chmod(0o755)
        made = Path(folder, "autoip")
        made.write_text(text.replace("/usr/bin/python3 -I", " ".join([*words, *options])))
        made.chmod(0o755)
        yield made
