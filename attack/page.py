"""What docs/reliability.md and docs/scale.svg have of the attacks, from what is recorded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from tools.picture import STYLE, line, text

from .results import Results, load

WHAT = {
    "filter": "packet filter: the kernel's program, its rule in C and the RFC agree",
    "listener": "listener: reflex, answers and queue do what a model of them says",
    "defence": "the program at the ingress: its instructions and the RFC agree, and the frame stays as it was",
    "broadcast": "the program at the egress: its instructions, the kernel and the RFC agree",
    "arp": "ARP packets",
    "scan": "what hosts answer to a scan: GVCP, DNS, WS-Discovery, SSDP, VXI-11, DHCP, ICMPv6",
    "netlink": "netlink: links, addresses, routes, rules",
    "connections": "netlink: TCP connections",
    "config": "configuration file",
    "store": "saved address, avahi-autoipd's too",
    "record": "lock file's record",
    "requests": "control socket, the daemon's side",
    "answers": "control socket, the commands' side",
    "bus": "D-Bus: a hostile bus, NetworkManager and strangers on it",
    "kill while starting": "SIGKILL at a random moment of start and claim",
    "kill while stopping": "SIGKILL after SIGTERM",
    "kill while moving": "SIGKILL while conflicts force another address",
    "kill at a system call": "SIGKILL at a system call that changes something",
    "kill while installing hooks": "SIGKILL of `hooks install` and `hooks remove`",
    "stop over a deadline": "SIGSTOP over the deadlines of a claim, a conflict meanwhile",
    "busy processors": "two busy processes at nice -20 during claim and conflict",
    "storm": "thousands of frames that are no conflict, then one that is",
    "flapping link": "the link goes and comes 50 to 300 times",
}
"""In words."""


def tried() -> str:
    """The table of what was fuzzed and of the chaos."""
    results = load()
    lines = ["| attacked | how often | by |", "|---|---|---|"]
    for attack, how in (("fuzz", ""), ("chaos", "`make chaos`")):
        rows = results.get(attack, {})
        for name in (name for name in WHAT if name in rows):
            row = rows[name]
            by = how or f"`make fuzz`, {row['engine']}"
            lines.append(f"| {WHAT[name]} | {row['count']:,} {row['unit']} | {by} |")
    return "\n".join(lines)


def party() -> str:
    """What came of the mixed party, in a sentence."""
    row = load().get("party", {}).get("rounds")
    if row is None:
        return "Not recorded yet."
    guests = ", ".join(f"{count} {name}" for name, count in row["guests"].items())
    return (
        f"{guests} on one bridge, {row['count']} rounds: all had different addresses after {row['slowest']} s at the"
        " latest, and none lost its own."
    )


def _links(results: Results) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = results.get("scale", {})
    yield from sorted(
        rows.items(), key=lambda item: ("," in item[0].partition(" hosts")[2], item[1]["count"])
    )


def scale() -> str:
    """The table of how long it takes, and of the frames."""
    lines = [
        "| link | half have an address | 99 % | the last | frames a host sends | at most | moved |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in _links(load()):
        times = " | ".join(f"{row[key]:,.1f} s" for key in ("half", "most", "last"))
        frames = f"{row['frames']:.1f} | {row['frames_most']}"
        lines.append(f"| {name} | {times} | {frames} | {row['lost_one']:,} |")
    return "\n".join(lines)


# --- the picture ------------------------------------------------------------------------------------

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 60, 560, 50, 330
SHOWN = ("100 hosts", "10,000 hosts", "40,000 hosts", "60,000 hosts")
COLOURS = ("#0969da", "#1a7f37", "#bf8700", "#cf222e")
FIRST = 3.0
"""Seconds at the left end; the axis is logarithmic."""


def picture() -> str:
    """Which share of the hosts has an address of its own, over time."""
    results = load()
    rows = [(name, row) for name, row in _links(results) if name in SHOWN]
    longest = max([row["last"] for _, row in rows], default=10 * FIRST)

    def x(seconds: float) -> float:
        share = math.log(max(seconds, FIRST) / FIRST) / math.log(longest / FIRST)
        return LEFT + share * (RIGHT - LEFT)

    def y(share: float) -> float:
        return BOTTOM - share * (BOTTOM - TOP)

    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    about = "Hosts with an address of their own, over time"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{about}">',
        f"<style>{STYLE}\n  .curve {{ fill: none; stroke-width: 2; }}\n</style>",
        f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="6"/>',
        text(
            LEFT,
            28,
            "hosts with an address of their own, after all were switched on at once",
            "start",
        ),
        line("tick", LEFT, TOP, LEFT, BOTTOM),
        line("tick", LEFT, BOTTOM, RIGHT, BOTTOM),
        text((LEFT + RIGHT) / 2, BOTTOM + 36, "seconds", "middle", "small"),
    ]
    for percent in range(0, 101, 25):
        parts += [
            line("tick", LEFT - 5, y(percent / 100), LEFT, y(percent / 100)),
            text(LEFT - 8, y(percent / 100) + 4, f"{percent} %", "end", "small"),
        ]
    for seconds in (3, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000):
        if seconds <= longest:
            parts += [
                line("tick", x(seconds), BOTTOM, x(seconds), BOTTOM + 5),
                text(x(seconds), BOTTOM + 18, f"{seconds:,}", "middle", "small"),
            ]
    for number, ((name, row), colour) in enumerate(zip(rows, COLOURS, strict=False)):
        points = " ".join(f"{x(at):.1f},{y(share):.1f}" for at, share in row["curve"])
        height = TOP + 20 + 22 * number
        parts += [
            f'<polyline class="curve" style="stroke: {colour}" points="{points}"/>',
            f'<rect x="{RIGHT + 20}" y="{height - 9}" width="12" height="4" fill="{colour}"/>',
            text(RIGHT + 38, height, f"{name}: {row['last']:,.0f} s", "start", "small"),
        ]
    return "\n".join([*parts, "</svg>"])
