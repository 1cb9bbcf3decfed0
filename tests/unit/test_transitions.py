"""Every change of state that the table of ipv4ll allows happens, and no other is accepted."""

from __future__ import annotations

from ipaddress import IPv4Address
from random import Random

import pytest

from autoip.core.acd import Defence
from autoip.core.arp import announcement
from autoip.core.constants import MAX_CONFLICTS, RATE_LIMIT_INTERVAL, Timing
from autoip.core.ipv4ll import ACD_STEPS, TRANSITIONS, Cause, Configure, Ipv4ll, State, Transition
from autoip.errors import CoreMisuse

MAC = b"\x02\0\0\0\0\x01"
OTHER = b"\x02\0\0\0\0\x02"


class Host:
    """A core, brought into a state by the calls that lead there."""

    def __init__(self, state: State) -> None:
        self.core = Ipv4ll(MAC, Timing(), Random(1), Random(2), defence=Defence.ABANDON)
        self.now = 1.0
        self.seen: list[tuple[State, State]] = []
        if state is State.STANDBY:
            self.core.stand_by()
        elif state is not State.NO_LINK:
            self.core.link_up(self.now)
        if state is State.RATE_LIMITED:
            self.conflict(limited=True)
        if state is State.PAUSED:
            self.until(State.CONFIGURING)
            self.refuse()
        self.until(state)

    def until(self, state: State) -> None:
        while self.core.state is not state:
            if self.core.state is State.CONFIGURING:
                self.core.configured(self.address, self.now)
            else:
                self.step()
        self.take()

    def step(self) -> None:
        at = self.core.next_timer()
        assert at is not None
        self.now = at
        self.core.handle_timer(at)
        if self.core.to_send(at) is not None:
            self.core.sent(at)

    def take(self) -> list[tuple[State, State]]:
        while (event := self.core.next_event()) is not None:
            if isinstance(event, Transition):
                self.seen.append((event.old, event.new))
            elif isinstance(event, Configure):
                assert event.address == self.core.candidate
        return self.seen

    @property
    def address(self) -> IPv4Address:
        assert self.core.candidate is not None
        return self.core.candidate

    def conflict(self, *, limited: bool) -> None:
        self.core.conflicts = MAX_CONFLICTS - 1 if limited else 0
        self.core.receive(announcement(OTHER, self.address), self.now)

    def refuse(self) -> None:
        self.core.configure_failed(self.address, self.now, "refused")

    def suffer(self, cause: Cause, *, limited: bool, again: bool = False) -> None:
        match cause:
            case Cause.LINK_READY:
                self.core._not_before = self.now + RATE_LIMIT_INTERVAL if limited else None
                self.core.link_up(self.now)
            case Cause.LINK_LOST:
                self.core.link_down()
            case Cause.NOT_WANTED:
                self.core.stand_by()
            case Cause.CONFLICT:
                self.conflict(limited=limited)
            case Cause.REMOVED:
                self.core._removals = MAX_CONFLICTS - 1 if limited else int(again)
                self.core.removed(self.now)
            case Cause.ON_SIBLING:
                self.core.conflicts = MAX_CONFLICTS - 1 if limited else 0
                self.core.elsewhere(self.address, self.now)
            case Cause.REFUSED:
                self.refuse()
            case Cause.PAUSE_OVER:
                self.step()


@pytest.mark.parametrize("cause", Cause)
def test_each_cause_leads_where_the_table_says(cause: Cause) -> None:
    sources, targets = TRANSITIONS[cause]
    for source in sources:
        led: set[State] = set()
        for limited, again in ((False, False), (False, True), (True, True)):
            host = Host(source)
            host.seen.clear()
            host.suffer(cause, limited=limited, again=again)
            ((old, new),) = host.take()
            assert old is source
            led.add(new)
        assert led == targets


def test_each_step_of_the_acd_is_taken() -> None:
    seen = Host(State.BOUND).seen
    assert seen[0] == (State.NO_LINK, State.PROBING)
    assert set(seen[1:]) == set(ACD_STEPS)


def test_another_change_is_a_mistake_of_ours() -> None:
    host = Host(State.BOUND)
    host.core._reported = (State.PAUSED, None)
    for cause in (None, Cause.LINK_LOST, Cause.PAUSE_OVER):
        with pytest.raises(CoreMisuse):
            host.core._report("for no reason", cause)
