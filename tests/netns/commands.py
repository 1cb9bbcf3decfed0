"""autoip's commands, run beside a daemon of its."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any

from lab import Daemon
from lab.daemon import REPOSITORY

from .conftest import autoip_command
from .helpers import PATIENCE


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run(daemon: Daemon, line: str, *, prefix: tuple[str, ...] = ()) -> Ran:
    """`autoip LINE` beside the daemon."""
    child = daemon.namespace.popen(
        [*prefix, *autoip_command(), *line.split()],
        env=daemon.env,
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = child.communicate(timeout=PATIENCE)
    assert "Traceback" not in err.decode()
    return Ran(child.returncode, out.decode(), err.decode())


def report(daemon: Daemon, name: str = "eth0") -> dict[str, Any]:
    """The status of an interface by the command."""
    [found] = run(daemon, f"status --json {name}").json["interfaces"]
    assert isinstance(found, dict)
    return found
