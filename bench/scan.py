"""A thousand hosts on a link: who finds them, and how soon; and what ARP in bulk costs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from lab import LabError, Namespace
from lab.crowd import answers
from lab.daemon import REPOSITORY
from lab.devices import Camera
from lab.frames import announcement
from lab.programs import find_program

from . import cables, samples
from .cables import Cable
from .report import Result, Target, number
from .setting import AUTOIP, LAST_PROCESSOR, Setting

NAME = "scan"

HOSTS, SEED = 1000, 1
OURS = "169.254.9.9"
NETWORK = "169.254.0.0/16"
CAMERA_MAC = "00:11:1c:0a:0b:0c"
LIMIT = 400
"""Seconds after which a program is stopped: it has found what it has printed."""
PROGRAMS: dict[str, tuple[str, ...]] = {
    "autoip scan": (*AUTOIP, "scan", "eth0"),
    "autoip scan --rate max": (*AUTOIP, "scan", "eth0", "--rate", "max"),
    "arp-scan, 5000 a second": (
        *(
            "arp-scan",
            "--interface",
            "eth0",
            "--interval",
            "200u",
            "--retry",
            "2",
            "--timeout",
            "500",
            NETWORK,
        ),
    ),
    "arp-scan": ("arp-scan", "--interface", "eth0", NETWORK),
    "nmap": ("nmap", "-n", "-sn", "-e", "eth0", NETWORK),
}
SLOW = ("arp-scan", "nmap")
"""Those that take minutes: once, and not for a glimpse."""
MEANS = {"helper": 400_000, "socket": 200_000, "a program in C": 400_000}
FIRST = ("chrt", "--fifo", "20", "taskset", "--cpu-list", str(LAST_PROCESSOR))
"""The sender goes first: a burst is in the socket's buffer before it is read."""


def measure(setting: Setting) -> Result:
    result = Result(
        NAME,
        f"{HOSTS} hosts spread over {NETWORK} on a veth pair",
        ("", "rounds", "found, worst", "seconds, worst", "CPU seconds", "MB"),
    )
    with contextlib.ExitStack() as stack:
        yonder = stack.enter_context(Namespace("far"))
        cable = cables.cable(yonder, stack.enter_context(Namespace("host")))
        cable.host.ip(f"address add {OURS}/16 dev eth0")
        _start(setting, cable, result)
        crowd = [sys.executable, "-m", "lab.crowd", cable.far, str(HOSTS), str(SEED)]
        process = yonder.popen(crowd, stdout=subprocess.PIPE, cwd=REPOSITORY)
        if process.stdout is None or process.stdout.readline() != b"ready\n":
            raise LabError("the hosts do not answer")
        _find(setting, cable, result)
        process.kill()
        process.wait()
        _bulk(setting, cable, result)
    return result


def _start(setting: Setting, cable: Cable, result: Result) -> None:
    """How soon the first frame leaves, and the first camera is shown, from exec on.

    With bytecode, as an installed program has it: that of the first round, which does not count.
    """
    frames, lines = [], []
    sniffer = cable.yonder.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
    with (
        sniffer,
        tempfile.TemporaryDirectory() as bytecode,
        Camera(cable.yonder, cable.far, CAMERA_MAC, "192.168.77.5", "255.255.255.0"),
    ):
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        sniffer.bind((cable.far, 3))
        sniffer.settimeout(10)
        for _ in range(1 + setting.times(20, 5)):
            sniffer.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while sniffer.recv(2048):
                    pass
            sniffer.settimeout(10)
            began = time.monotonic()
            command = [*AUTOIP, "scan", "eth0", "--first"]
            child = cable.host.popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=REPOSITORY,
                env=environment,
                die_with_us=False,
            )
            while sniffer.recv(2048)[6:12] != cable.raw_mac:
                pass
            frames.append(1e3 * (time.monotonic() - began))
            if child.stdout is None or b"192.168.77.5" not in child.stdout.readline():
                raise LabError("the camera was not shown first")
            lines.append(1e3 * (time.monotonic() - began))
            child.communicate()
    del frames[0], lines[0]
    result.numbers["start"] = {"first_frame_ms": frames, "first_host_ms": lines}
    result.targets += [
        Target("exec to the first frame, median", 150, samples.median(frames), "ms"),
        Target("exec to the first camera shown, median", 500, samples.median(lines), "ms"),
    ]


def _find(setting: Setting, cable: Cable, result: Result) -> None:
    wanted = {".".join(map(str, address)) for address in answers(HOSTS, SEED)}
    worst: dict[str, tuple[int, float, float]] = {}
    for title, command in PROGRAMS.items():
        if find_program(command[0]) is None or (setting.quick and title in SLOW):
            result.rows.append((title, "not measured", "", "", "", ""))
            continue
        rounds = 1 if title in SLOW else setting.times(5, 1)
        found = [_run(cable, command, wanted) for _ in range(rounds)]
        hosts, seconds = min(one[0] for one in found), max(one[1] for one in found)
        cpu, memory = max(one[2] for one in found), max(one[3] for one in found)
        worst[title] = hosts, seconds, memory
        result.rows.append(
            (title, str(rounds), str(hosts), number(seconds), number(cpu), number(memory))
        )
        result.numbers[title] = found
    hosts, seconds, memory = worst["autoip scan"]
    result.targets += [
        Target("hosts found at the default rate, worst round", HOSTS, hosts, "", at_least=True),
        Target("both passes at the default rate, worst round", 30, seconds, "s"),
        Target("memory", 40, memory, "MB"),
    ]
    hosts, seconds, _ = worst["autoip scan --rate max"]
    missed = 100 * (HOSTS - hosts) / HOSTS
    result.targets += [
        Target("missed at --rate max, worst round", 0.1, missed, "%"),
        Target("both passes at --rate max, worst round", 3, seconds, "s"),
    ]


def _run(cable: Cable, command: Sequence[str], wanted: set[str]) -> tuple[int, float, float, float]:
    """How many hosts a program finds, its time and CPU time in seconds, and its memory in MB."""
    began = time.monotonic()
    child = cable.host.popen(
        ["timeout", str(LIMIT), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=REPOSITORY,
    )
    if child.stdout is None:
        raise LabError("no output")
    out = child.stdout.read().decode()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = status
    seconds = time.monotonic() - began
    found = wanted & set(re.findall(r"\b169\.254\.\d+\.\d+\b", out))
    return len(found), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def _bulk(setting: Setting, cable: Cable, result: Result) -> None:
    """Frames a second of CPU time, in all and of the program itself."""
    for direction in ("send", "receive"):
        costs: dict[str, list[dict[str, float]]] = {means: [] for means in MEANS}
        for _ in range(setting.times(3, 1)):
            for means, count in MEANS.items():
                costs[means].append(_cost(setting, cable, means, direction, count))
        cpu = {
            means: min(one["cpu"] / one["frames"] for one in found)
            for means, found in costs.items()
        }
        user = {
            means: min(one["user"] / one["frames"] for one in found)
            for means, found in costs.items()
        }
        result.numbers[direction] = costs
        result.notes.append(
            f"{direction}: "
            + "; ".join(
                f"{means}: {1e6 * cpu[means]:.2f} us a frame, {1e6 * user[means]:.2f} of them its own"
                for means in MEANS
            )
        )
        # A program whose own part is too short for the kernel's clock has none that can be measured.
        ratio = user["socket"] / user["helper"] if user["helper"] else math.inf
        result.targets += [
            Target(
                f"{direction}: helper to C, by CPU time",
                0.9,
                cpu["a program in C"] / cpu["helper"],
                "times",
                at_least=True,
            ),
            Target(
                f"{direction}: helper to Python's socket module, by its own CPU time",
                5,
                ratio,
                "times",
                at_least=True,
            ),
        ]


def _cost(
    setting: Setting, cable: Cable, means: str, direction: str, count: int
) -> dict[str, float]:
    count = setting.times(count, count // 10)
    program = [setting.workshop.program("bulk")]
    if means != "a program in C":
        program = [sys.executable, "-m", "bench.bulk_arp", means]
    command = [*program, direction, "eth0", str(count)]
    if direction == "receive":
        command = ["taskset", "--cpu-list", str(LAST_PROCESSOR), *command]
    child = cable.host.popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY)
    if child.stdout is None or child.stdout.readline() != b"ready\n":
        raise LabError(f"{means} does not start")
    if direction == "receive":
        frame = announcement("02:00:00:00:00:07", "169.254.7.7").hex()
        flood = setting.workshop.program("flood")
        cable.yonder.run(*FIRST, flood, cable.far, frame, str(count), "2000", "4000", timeout=120)
    found: dict[str, float] = json.loads(child.stdout.readline())
    child.wait()
    return found
