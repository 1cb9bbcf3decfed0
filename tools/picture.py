"""The picture in the README: a claim and a defence on the wire.

    python -m tools.picture             draws docs/claim-and-defence.svg from the capture beside it
    python -m tools.picture --capture   makes the capture anew first (root): docs/claim-and-defence.pcap

The capture comes from a cable between two network namespaces, with the kernel's time stamps in nanoseconds; Wireshark
and tcpdump read it. A test fails when the picture is stale.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path
from xml.sax.saxutils import escape

from lab import ArpFrame, Daemon, Namespace, Switch, frames

ROOT = Path(__file__).resolve().parents[1]
CAPTURE = ROOT / "docs" / "claim-and-defence.pcap"
PICTURE = ROOT / "docs" / "claim-and-defence.svg"

HOST = "02:00:00:00:00:01"
OTHER = "02:00:00:00:00:fe"
ADDRESS = IPv4Address("169.254.20.20")

MAGIC_NS = 0xA1B23C4D  # pcap with nanoseconds
ETHERNET = 1


def capture() -> list[ArpFrame]:
    """Run autoip on one end of a cable, and a host that claims its address once on the other."""
    command = [sys.executable, "-m", "autoip", "eth0", "--ip", str(ADDRESS), "--no-state"]
    with Switch() as switch, Namespace("picture") as host:
        port = switch.attach(host, mac=HOST)
        with Daemon(host, "eth0", command) as daemon:
            daemon.start()
            port.sniffer.wait_count(lambda f: f.is_announcement, 2, 30)
            port.sniffer.assert_silent(1.5)
            since = port.sniffer.mark()
            port.send(frames.conflict_request(OTHER, ADDRESS, "169.254.7.7"))
            port.sniffer.wait_announcement(ADDRESS, 5, since=since)
            port.sniffer.assert_silent(1)
            daemon.stop()
        return port.sniffer.arp(from_host=None)


def save(captured: Sequence[ArpFrame]) -> None:
    """Return the frames as a pcap file; its clock starts at zero."""
    data = struct.pack("<IHHiIII", MAGIC_NS, 2, 4, 0, 0, 65535, ETHERNET)
    for frame in captured:
        seconds, ns = divmod(frame.ns - captured[0].ns, 1_000_000_000)
        data += struct.pack("<IIII", seconds, ns, len(frame.data), len(frame.data)) + frame.data
    CAPTURE.write_bytes(data)


def load() -> list[ArpFrame]:
    """Return the frames of the capture; `ns` since the first."""
    data = CAPTURE.read_bytes()
    found: list[ArpFrame] = []
    at = 24
    while at < len(data):
        seconds, ns, length, _ = struct.unpack_from("<IIII", data, at)
        at += 16
        frame = frames.parse(data[at : at + length], ns=seconds * 1_000_000_000 + ns)
        assert isinstance(frame, ArpFrame)
        found.append(frame)
        at += length
    return found


# --- drawing --------------------------------------------------------------------------------------

WIDTH = 760
AXIS, LEFT, RIGHT = 70, 150, 610
TOP = 84
SECOND = 46
"""Pixels."""
ROW = 30
"""Pixels between two frames that are too close for the scale."""

STYLE = """
  svg { font: 13px ui-sans-serif, system-ui, sans-serif; }
  .paper { fill: #ffffff; stroke: #d0d7de; }
  text { fill: #1f2328; }
  .small { fill: #59636e; font-size: 11px; }
  .life, .tick { stroke: #8c959f; }
  .held { stroke: #1a7f37; stroke-width: 5; }
  .ours { stroke: #0969da; fill: #0969da; }
  .theirs { stroke: #cf222e; fill: #cf222e; }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117; stroke: #3d444d; }
    text { fill: #f0f6fc; }
    .small { fill: #9198a1; }
    .held { stroke: #3fb950; }
    .ours { stroke: #4493f8; fill: #4493f8; }
    .theirs { stroke: #f85149; fill: #f85149; }
  }
"""


def draw(captured: Sequence[ArpFrame]) -> str:
    """Return an SVG; time goes down, to scale but for frames that follow at once."""
    rows: list[float] = []
    for frame in captured:
        y = TOP + frame.ns / 1e9 * SECOND
        rows.append(max(y, rows[-1] + ROW) if rows else y)
    bottom = rows[-1] + ROW
    height = bottom + 20
    about = "Three probes, two announcements, a conflict, a defence"
    size = f'width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{about}">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:.0f}" rx="6"/>',
        text(LEFT, 28, "autoip, eth0", "middle"),
        text(LEFT, 44, HOST, "middle", "small"),
        text(RIGHT, 28, "another host", "middle"),
        text(RIGHT, 44, OTHER, "middle", "small"),
        text(AXIS - 8, 44, "seconds", "end", "small"),
        line("life", LEFT, TOP - 22, LEFT, bottom),
        line("life", RIGHT, TOP - 22, RIGHT, bottom),
        line("tick", AXIS, TOP, AXIS, bottom),
    ]
    for second in range(int((bottom - TOP) / SECOND) + 1):
        y = TOP + second * SECOND
        parts += [
            line("tick", AXIS - 5, y, AXIS, y),
            text(AXIS - 8, y + 4, str(second), "end", "small"),
        ]
    claimed = next(i for i, frame in enumerate(captured) if frame.is_announcement)
    parts.append(line("held", LEFT, rows[claimed], LEFT, bottom))
    parts.append(text(LEFT - 8, rows[claimed] + 16, "held", "end", "small"))
    for row, frame in zip(rows, captured, strict=True):
        parts += arrow(row, frame)
    probes = announcements = 0
    for i, (row, frame) in enumerate(zip(rows, captured, strict=True)):
        note = f"{frame.ns / 1e9:.3f} s"
        if frame.is_probe:
            probes += 1
            what = f"probe {probes}: who has {frame.tpa}?"
        elif frame.sha == OTHER:
            what = f"conflict: {frame.spa} asks for {frame.tpa}"
        elif i and captured[i - 1].sha == OTHER:
            what = f"defence: {frame.spa} is mine"
            note += f", {(frame.ns - captured[i - 1].ns) / 1e6:.2f} ms later"
        else:
            announcements += 1
            what = f"announcement {announcements}: {frame.spa} is mine"
        middle = (LEFT + RIGHT) / 2
        parts += [
            text(middle, row - 5, what, "middle"),
            text(RIGHT + 14, row + 4, note, "start", "small"),
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.0f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.0f}" y1="{y1:.1f}" x2="{x2:.0f}" y2="{y2:.1f}"/>'


def arrow(y: float, frame: ArpFrame) -> list[str]:
    kind, start, end = ("theirs", RIGHT, LEFT) if frame.sha == OTHER else ("ours", LEFT, RIGHT)
    back = -9 if end > start else 9
    head = f"{end},{y:.1f} {end + back},{y - 4:.1f} {end + back},{y + 4:.1f}"
    return [line(kind, start, y, end + back, y), f'<polygon class="{kind}" points="{head}"/>']


def main(words: Sequence[str]) -> None:
    """Draw the picture; with `--capture`, make the capture first."""
    if "--capture" in words:
        save(capture())
    PICTURE.write_text(draw(load()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
