"""What happens to one interface: logged, published for `watch`, and kept for `status`."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import Any

from autoip.control.protocol import event
from autoip.core import acd, ipv4ll
from autoip.core.arp import format_mac
from autoip.core.constants import ANNOUNCE_NUM, PROBE_NUM
from autoip.core.ipv4ll import HELD
from autoip.core.proxy_arp import ProxyArpDetector
from autoip.daemon.handover import KeptReport
from autoip.daemon.log_budget import LogBudget
from autoip.kernel.model import Address
from autoip.log import NOTICE

REFUSALS = 6
"""So many refusals of one frame, within 3.1 s, are more than a moment without room or link."""
_REFUSED = "the kernel takes none of our frames"
NOTES_MAX = 8
"""At most this many notes are kept for `status`, the newest ones."""


class Reporter:
    """Reports on one interface, and counts its conflicts.

    Args:
        name: the interface's.
        log: the program's logger.
        progress: log level of step-by-step lines.
        clock: CLOCK_BOOTTIME in seconds, for "in 1.5 s".
        publish: takes each event.
    """

    def __init__(
        self,
        name: str,
        log: logging.Logger,
        progress: int,
        clock: Callable[[], float],
        publish: Callable[[dict[str, Any]], None],
    ) -> None:
        self.name = name
        self.why = ""
        self.trouble = ""
        """Why there is no link; empty if there is one."""
        self.since: float | None = None
        self.conflicts = 0
        self.defences = 0
        self.last_conflict: dict[str, Any] | None = None
        self.notes: list[str] = []
        self._refusals = 0  # in a row
        self._refused = ""  # the note about them
        self._log = log
        self._progress = progress
        self._clock = clock
        self._budget = LogBudget(clock, self._write)
        self._publish = publish
        self._proxy_arp: ProxyArpDetector | None = None  # made at the first conflict

    def keep(self) -> KeptReport:
        """Return what `resume` takes."""
        return KeptReport(
            self.why,
            self.trouble,
            self.since,
            self.conflicts,
            self.defences,
            self.last_conflict,
            tuple(self.notes),
        )

    def resume(self, kept: KeptReport) -> None:
        """Go on for another one."""
        self.why, self.trouble, self.since = kept.why, kept.trouble, kept.since
        self.conflicts, self.defences = kept.conflicts, kept.defences
        self.last_conflict, self.notes = kept.last_conflict, [*kept.notes]
        self._refused = next((note for note in self.notes if note.startswith(_REFUSED)), "")

    def log(self, level: int, text: str, error: Exception | None = None) -> None:
        """Log a line about the interface, with the traceback of `error`, which is a bug; see `LogBudget`."""
        if self._budget.allows(level, text):
            self._write(level, text, error)

    def _write(self, level: int, text: str, error: Exception | None = None) -> None:
        self._log.log(level, "%s: %s", self.name, text, exc_info=error)

    def close(self) -> None:
        """Log how many lines were not logged."""
        self._budget.summarise()

    def note(self, text: str) -> None:
        """Warn of something that an administrator should change, and keep the line for `status`."""
        if text not in self.notes:
            self.notes = [*self.notes, text][-NOTES_MAX:]
            self.log(logging.WARNING, text)

    def put_back(self, name: str) -> None:
        """Note that something of ours was missing."""
        self.note(f"somebody removed our {name}; it was put back")

    def waits(self, trouble: str, *, follows: bool) -> None:
        """Log why there is no link, unless that was the reason already.

        Args:
            trouble: the reason, in words.
            follows: whether a transition follows, which is the log line.
        """
        if trouble != self.trouble:
            self.trouble = trouble
            if not follows:
                self.log(logging.INFO, trouble)

    def frame_failed(self, error: OSError) -> None:
        """Log that the kernel did not take a frame; note it, once, where it takes none of them."""
        self.log(logging.DEBUG, f"the kernel did not take a frame: {error.strerror}")
        self._refusals += 1
        if self._refusals == REFUSALS:
            name = errno.errorcode.get(error.errno or 0, str(error.errno))
            self._refused = f"{_REFUSED}: {error.strerror} ({name})"
            self.note(self._refused)

    def _frame_left(self) -> None:
        self._refusals = 0
        if self._refused:
            self.notes = [note for note in self.notes if note != self._refused]
            self._refused = ""
            self.log(logging.INFO, "the kernel takes our frames again")

    def publish(self, name: str, **fields: Any) -> None:
        """Publish an event for `watch`."""
        self._publish(event(name, self.name, time.time(), **fields))

    def publish_address(self, name: str, address: Address) -> None:
        """Publish an event about an address of the interface."""
        self.publish(name, address=str(address.address), prefixlen=address.prefixlen)

    def report(self, happened: ipv4ll.Event) -> None:
        """Log and publish an event of the core."""
        if isinstance(happened, acd.ProbeSent | acd.AnnouncementSent | acd.Defended):
            self._frame_left()
        match happened:
            case ipv4ll.Transition():
                self._transition(happened)
            case ipv4ll.Claimed():
                self.log(logging.INFO, f"claimed {happened.address}")
                if self._proxy_arp is not None:
                    self._proxy_arp.claimed()
            case acd.ProbeSent():
                text = f"probe {happened.number}/{PROBE_NUM} for {happened.address}"
                self.log(self._progress, text)
            case acd.AnnouncementSent():
                text = f"announcement {happened.number}/{ANNOUNCE_NUM} of {happened.address}"
                self.log(self._progress, text)
            case acd.Defended():
                self._defended(happened)
            case acd.Conflict():
                # The transition that follows is its log line.
                mac = self._count(happened)
                address = str(happened.address)
                self.publish("conflict", mac=mac, address=address, in_use=happened.in_use)
                if not happened.in_use:
                    self._watch_for_proxy_arp(happened)

    def _watch_for_proxy_arp(self, happened: acd.Conflict) -> None:
        if self._proxy_arp is None:
            self._proxy_arp = ProxyArpDetector()
        if (note := self._proxy_arp.conflict(happened.address, happened.packet)) is not None:
            self.note(note)

    def _transition(self, happened: ipv4ll.Transition) -> None:
        self.why = happened.why
        if happened.new not in HELD:
            self.since = None
        elif self.since is None:
            self.since = time.time()
        address = None if happened.address is None else str(happened.address)
        line = f"{happened.old.value} -> {happened.new.value}: {happened.why}"
        if address is not None:
            line += f"; {address}"
        pause = None
        if happened.step_at is not None:
            pause = max(happened.step_at - self._clock(), 0.0)
            line += f"; next: {happened.step} in {pause:.1f} s"
        self.log(logging.WARNING if happened.lost else logging.INFO, line)
        self.publish(
            "transition",
            old=happened.old.value,
            new=happened.new.value,
            why=happened.why,
            address=address,
            step=happened.step or None,
            step_in=pause,
        )

    def _defended(self, happened: acd.Defended) -> None:
        self.defences += 1
        mac = self._count(happened)
        by = " by the reflex" if happened.reflex else ""
        self.log(
            NOTICE,
            f"conflict: {mac} claims {happened.address};"
            f" defended{by} {happened.delay * 1e3:.2f} ms after it came",
        )
        self.publish(
            "defence",
            mac=mac,
            address=str(happened.address),
            delay=happened.delay,
            reflex=happened.reflex,
        )

    def _count(self, happened: acd.Conflict | acd.Defended) -> str:
        """Count and keep the conflict; return the other host's MAC."""
        self.conflicts += 1
        mac = format_mac(happened.packet.sha)
        self.last_conflict = {"mac": mac, "address": str(happened.address), "at": time.time()}
        return mac
