"""Every change of state that the table of ipv4ll allows happens, and no other is accepted."""

from __future__ import annotations

from functools import partial
from ipaddress import IPv4Address
from random import Random

import pytest

from autoip.core.acd import Defence, Listen
from autoip.core.arp import announcement
from autoip.core.constants import MAX_CONFLICTS, RATE_LIMIT_INTERVAL, Timing
from autoip.core.ipv4ll import (
    ACD_STEPS,
    TRANSITIONS,
    Cause,
    Configure,
    Ipv4ll,
    State,
    Transition,
    Unconfigure,
)
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
    host = Host(State.PROBING)
    host.core._reported = (State.BOUND, None)
    with pytest.raises(CoreMisuse):
        host.core._report("for no reason", Cause.LINK_READY)


@pytest.mark.parametrize("state", State)
def test_link_and_wish_can_go_in_every_state(state: State) -> None:
    """And only the loss of an address that was held, which nobody asked for, is reported as one."""
    held = state in (State.ANNOUNCING, State.BOUND)
    for leave, end, lost in (
        (Ipv4ll.link_down, State.NO_LINK, held),
        (partial(Ipv4ll.link_down, asked=True), State.NO_LINK, False),
        (Ipv4ll.stand_by, State.STANDBY, False),
    ):
        core = Host(state).core
        before = core.candidate
        leave(core)
        assert core.state is end
        events = list(iter(core.next_event, None))
        assert core.next_timer() is None
        lost_by = [event.lost for event in events if isinstance(event, Transition)]
        assert lost_by == ([] if state is end else [lost])
        taken_off = [event for event in events if isinstance(event, Unconfigure)]
        assert taken_off == ([Unconfigure(before, conflict=False)] if held and before else [])
        core.link_up(1e6)
        assert core.state is State.PROBING
        assert core.address is None


NOT_HELD = [state for state in State if state not in (State.ANNOUNCING, State.BOUND)]


@pytest.mark.parametrize("state", State)
def test_an_answer_about_another_address_or_too_late_changes_nothing(state: State) -> None:
    host = Host(state)
    candidate = host.core.candidate
    other = IPv4Address("169.254.1.1")
    host.core.configure_failed(other, host.now, "refused")
    host.core.elsewhere(other, host.now)
    host.core.receive(announcement(OTHER, other), host.now)
    if candidate is not None and state is not State.CONFIGURING:
        host.core.configure_failed(candidate, host.now, "refused")
    if candidate is not None and state in (State.PROBING, State.ANNOUNCE_WAIT):
        host.core.elsewhere(candidate, host.now)
    if state in NOT_HELD:
        host.core.removed(host.now)
        assert host.core.address is None
    assert host.core.next_event() is None
    assert (host.core.state, host.core.candidate) == (state, candidate)


@pytest.mark.parametrize("state", State)
def test_an_address_that_is_not_waited_for_is_taken_off(state: State) -> None:
    host = Host(state)
    other = IPv4Address("169.254.1.1")
    late = other if state is State.CONFIGURING else host.core.candidate or other
    host.core.configured(late, host.now)
    assert host.core.next_event() == Unconfigure(late, conflict=False)
    assert host.core.next_event() is None
    assert host.core.state is state


STEPS = {
    State.NO_LINK: "",
    State.STANDBY: "",
    State.PAUSED: "next candidate",
    State.RATE_LIMITED: "next candidate",
    State.PROBING: "probe 1/3",
    State.ANNOUNCE_WAIT: "claim",
    State.CONFIGURING: "",
    State.ANNOUNCING: "announcement 1/2",
    State.BOUND: "",
}


@pytest.mark.parametrize("state", State)
def test_what_comes_next_and_which_frames_matter(state: State) -> None:
    core = Host(state).core
    assert core.step == STEPS[state]
    if state in (State.PAUSED, State.RATE_LIMITED):
        at = core.next_timer()
        assert at is not None
        core.handle_timer(at)
        assert core.step == "probe 1/3"
        return
    if state in (State.ANNOUNCING, State.BOUND):
        assert core.listen is Listen.DEFEND
    else:
        assert core.listen is (Listen.NOTHING if core.candidate is None else Listen.PROBE)


def test_a_rate_limit_that_is_over_does_not_hold_the_link_back() -> None:
    host = Host(State.RATE_LIMITED)
    until = host.core.next_timer()
    assert until == host.now + RATE_LIMIT_INTERVAL
    host.core.link_down()
    host.core.link_up(until)
    assert host.core.state is State.PROBING
