"""Frames a second that the helper receives and sends, beside Python's socket module and scapy."""

from __future__ import annotations

import contextlib
import json
import signal
from ipaddress import IPv4Address

from lab import Namespace, tcx
from lab.frames import conflict_request

from . import cables, samples
from .cables import Cable
from .report import Result, Target, number
from .setting import LAST_PROCESSOR, STRANGER, Setting, helper

NAME = "throughput"

ADDRESS = IPv4Address("169.254.77.77")
MEANS = {
    # Frames received, frames in a burst, pause after it in microseconds, frames sent. No burst is longer
    # than a socket's buffer and the helper's queue.
    "helper": (100_000, 120, 4_000, 100_000),
    "socket": (60_000, 120, 6_000, 60_000),
    "scapy": (4_000, 50, 30_000, 4_000),
}
TITLES = {
    "helper": "autoip.kernel.arp_socket",
    "socket": "Python's socket module",
    "scapy": "scapy",
}
FIRST = ("chrt", "--fifo", "20", "taskset", "--cpu-list", str(LAST_PROCESSOR))
"""The sender goes first, on the receiver's processor: a burst is in the socket's buffer before it is read."""
SOCKET_FACTOR = 5.0
SCAPY_FACTOR = 50.0


def measure(setting: Setting) -> Result:
    result = Result(
        NAME,
        "frames a second of CPU time, received and sent",
        ("", "frames", "lost", "frames/s of CPU", "us a frame", "frames/s of time"),
    )
    rates: dict[tuple[str, str], float] = {}
    with contextlib.ExitStack() as stack:
        yonder = stack.enter_context(Namespace("far"))
        cable = cables.cable(yonder, stack.enter_context(Namespace("host")))
        rounds = setting.times(3, 1)
        for direction, run in (("received", _receive), ("sent", _send)):
            runs: dict[str, list[dict[str, float]]] = {means: [] for means in MEANS}
            for _ in range(rounds):
                for means in MEANS:
                    runs[means].append(run(setting, cable, means))
            for means, found in runs.items():
                # The CPU time of the best round: noise only ever adds.
                best = min(found, key=lambda one: one["cpu"] / max(one["frames"], 1))
                rate = best["frames"] / best["cpu"] if best["cpu"] else 0.0
                rates[direction, means] = rate
                name = f"{TITLES[means]}, {direction}"
                result.rows.append(
                    (
                        name,
                        number(best["frames"]),
                        number(sum(one["lost"] for one in found)),
                        number(rate),
                        number(1e6 / rate) if rate else "",
                        number(best["frames"] / best["wall"]) if direction == "sent" else "",
                    )
                )
                result.numbers[name] = {
                    "rate_median": samples.median([one["frames"] / one["cpu"] for one in found]),
                    "rounds": found,
                }
        _at_egress(setting, cable, result)
    for direction in ("received", "sent"):
        ours = rates[direction, "helper"]
        for means, factor in (("socket", SOCKET_FACTOR), ("scapy", SCAPY_FACTOR)):
            ratio = ours / rates[direction, means]
            figure = f"{direction}: helper to {TITLES[means]}"
            result.targets.append(Target(figure, factor, ratio, "times", at_least=True))
    result.notes = [
        (
            "Rates by CPU time of all threads of the process, the kernel's part of their system calls included:"
            " a sender that cannot keep up, or a busy machine, does not change them. Best of"
            f" {setting.times(3, 1)} rounds."
        ),
        (
            "Received: bursts of conflicts, in the socket's buffer before they are read, each"
            " checked and given to Python with its time; the helper's thread and drain() together."
        ),
        "Sent: one frame a call, on a veth pair, whose sender also pays for the delivery at the far end.",
        (
            "Program at the egress: the one that has ARP of link-local addresses leave by broadcast, beside the helper"
            " without it. Lost: what did not arrive while it was attached and detached over and over."
        ),
    ]
    return result


def _at_egress(setting: Setting, cable: Cable, result: Result) -> None:
    """Measure the helper's sending with the program for ARP by broadcast at the interface."""
    for prefix in ((), tcx.WITHOUT):
        for how in ("stays", "comes-and-goes"):
            before = _arrived(cable)
            with helper(setting, cable, "egress", cable.name, how, prefix=prefix) as process:
                found = _send(setting, cable, "helper")
                process.signal(signal.SIGTERM)
                told = json.loads(process.wait_line("^{", 60))
                process.wait()
            found["lost"] = max(before + found["frames"] - _arrived(cable), 0)
            rate, times, place = found["frames"] / found["cpu"], told["times"], told["place"]
            name = f"sent, program {place}" + (f", came {times} times" if times > 1 else "")
            words = (found["frames"], found["lost"], rate, 1e6 / rate)
            wall = number(found["frames"] / found["wall"])
            result.rows.append((name, *map(number, words), wall))
            result.numbers[f"sent, program {place}, {how}"] = {**found, "times": times}
            if (place, how) == ("by tcx", "comes-and-goes"):
                figure = "frames lost while the program comes and goes by tcx"
                result.targets.append(Target(figure, 0.0, found["lost"], "frames"))


def _arrived(cable: Cable) -> int:
    """Return how many frames have come out of the far end."""
    [link] = json.loads(cable.yonder.run("ip", "-s", "-j", "link", "show", cable.far))
    return int(link["stats64"]["rx"]["packets"])


def _arguments(cable: Cable, means: str, count: int) -> tuple[str, ...]:
    return means, cable.name, cable.raw_mac.hex(), str(ADDRESS), str(count)


def _receive(setting: Setting, cable: Cable, means: str) -> dict[str, float]:
    count, burst, pause, _ = MEANS[means]
    count = setting.times(count, count // 5)
    with helper(
        setting, cable, "receiver", *_arguments(cable, means, count), apart=True
    ) as process:
        frame = conflict_request(STRANGER, ADDRESS).hex()
        program = setting.workshop.program("flood")
        arguments = (cable.far, frame, str(count), str(burst), str(pause))
        cable.yonder.run(*FIRST, program, *arguments, timeout=120)
        found: dict[str, float] = json.loads(process.wait_line("^{", 60))
        process.wait()
    found["lost"] = count - found["frames"]
    return found


def _send(setting: Setting, cable: Cable, means: str) -> dict[str, float]:
    count = MEANS[means][3]
    count = setting.times(count, count // 5)
    with helper(setting, cable, "sender", *_arguments(cable, means, count)) as process:
        found: dict[str, float] = json.loads(process.wait_line("^{", 60))
        process.wait()
    found["lost"] = 0
    return found
