"""`--trace FILE` on a real network: a claim, a defence and the loss of an address, replayed."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from lab import Port, frames
from tools import replay

from .conftest import MakeDaemon
from .helpers import NETNS, PATIENCE, RIVAL, A, bind, claimed_other

pytestmark = NETNS


def test_what_was_on_the_wire_is_replayed(
    port: Port, make_autoip: MakeDaemon, tmp_path: Path
) -> None:
    file = tmp_path / "trace"
    daemon = make_autoip(port, "--delay", "100", "--ip", str(A), "--trace", str(file))
    since = port.sniffer.mark()
    bind(port, daemon)
    port.send(frames.conflict_request(RIVAL, A))
    daemon.wait_line("conflict: .*defended", PATIENCE)
    mark = len(daemon.lines)
    port.send(frames.conflict_request(RIVAL, A))  # too soon to be defended against
    address = claimed_other(port, A, since=since)
    daemon.wait_line("announcing -> bound", PATIENCE, since=mark)
    port.sniffer.wait_count(
        lambda f: f.is_announcement and f.spa == address, 2, PATIENCE, since=since
    )
    assert daemon.stop() == 0

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    calls = [line for line in lines if "call" in line]
    offered = [bytes.fromhex(line["result"]) for line in calls if line["call"] == "to_send"]
    seen = [f for f in port.sniffer.arp(since) if f.source == port.mac]
    (defence,) = [f for f in seen if f.is_announcement and f.spa == A][2:]
    assert [f.data for f in seen if f != defence] == offered  # the helper sent the defence
    received = [
        bytes.fromhex(line["with"]["packet"]) for line in calls if line["call"] == "receive"
    ]
    assert received == [frames.conflict_request(RIVAL, A)] * 2
    events = [event["is"] for line in calls for event in line["events"]]
    assert events.count("Defended") == events.count("Conflict") == 1
    assert events.count("Claimed") == 2 and calls[-1]["state"] == "NO_LINK"
    added = [line["address"]["address"] for line in lines if line.get("news") == "address-added"]
    assert added == [str(A), str(address)]

    assert replay.replay(file.read_bytes()) == (len(calls), None)
