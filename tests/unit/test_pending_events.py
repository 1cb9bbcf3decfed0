"""Events that wait: few are left of a link that flaps, and nothing that matters is lost."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from autoip.kernel.model import (
    IFF_UP,
    Address,
    AddressAdded,
    AddressRemoved,
    Event,
    Link,
    LinkChanged,
    LinkRemoved,
)
from autoip.kernel.pending_events import PendingEvents
from tests.unit.fake_kernel import READY, link_of

UP, DOWN = LinkChanged(link_of()), LinkChanged(link_of(flags=IFF_UP))
RENAMED = LinkChanged(link_of(name="eth9"))
ADDRESS = Address(2, IPv4Address("169.254.7.7"), 16, 253, None, None)
PUT, TAKEN = AddressAdded(ADDRESS), AddressRemoved(ADDRESS)


def changes(count: int, event: LinkChanged) -> LinkChanged:
    return LinkChanged(replace(event.link, carrier_changes=count))


def left(*events: Event) -> list[Event]:
    """Return what is left of the events, in order."""
    pending = PendingEvents()
    for event in events:
        pending.add(event)
    return [pending.take() for _ in range(len(pending))]


def test_of_500_flaps_two_events_are_left() -> None:
    flaps = [changes(n, (DOWN, UP)[n % 2]) for n in range(1000)]
    assert left(*flaps) == [flaps[-2], flaps[-1]]


def test_a_link_that_is_lost_in_the_end_is_one_event() -> None:
    assert left(UP, DOWN, UP, changes(9, DOWN)) == [changes(9, DOWN)]


def test_without_a_loss_the_newest_state_is_left() -> None:
    newest = LinkChanged(link_of(flags=READY | 0x100))
    assert left(UP, UP, newest) == [newest]


def test_an_address_that_went_and_came_while_the_link_flapped() -> None:
    assert left(DOWN, TAKEN, UP, PUT, DOWN, UP) == [DOWN, TAKEN, PUT, UP]


def test_an_address_stays_behind_the_link_that_it_came_with() -> None:
    first = LinkChanged(link_of(flags=0))
    assert left(first, PUT, DOWN) == [DOWN, PUT]


def test_a_link_that_was_made_again_is_removed_first() -> None:
    again = LinkChanged(link_of(7, "eth0"))
    assert left(DOWN, UP, LinkRemoved(2), again) == [DOWN, UP, LinkRemoved(2), again]
    assert left(UP, LinkRemoved(2), DOWN, UP) == [UP, LinkRemoved(2), DOWN, UP]


def test_another_name_or_hardware_address_stays() -> None:
    assert left(UP, RENAMED, UP) == [UP, RENAMED, UP]
    other = LinkChanged(link_of(mac=b"\2" + bytes(5)))
    assert left(UP, other, UP) == [UP, other, UP]
    port = LinkChanged(link_of(master=9, port_kind="bridge"))
    assert left(UP, port, UP) == [UP, port, UP]


def test_what_was_taken_is_not_changed_any_more() -> None:
    pending = PendingEvents()
    pending.add(DOWN)
    pending.add(UP)
    assert pending.take() == DOWN
    pending.add(changes(3, UP))
    assert pending.take() == changes(3, UP)
    pending.add(UP)
    assert [pending.take(), len(pending)] == [UP, 0]


def links() -> st.SearchStrategy[Event]:
    flags = st.sampled_from([READY, IFF_UP, 0])
    names = st.sampled_from(["a", "a", "a", "b"])
    indexes = st.integers(2, 3)
    return st.builds(
        lambda index, name, flags: LinkChanged(link_of(index, name, flags=flags)),
        indexes,
        names,
        flags,
    )


EVENTS = st.lists(
    st.one_of(
        links(), links(), st.sampled_from([PUT, TAKEN]), st.builds(LinkRemoved, st.integers(2, 3))
    ),
    max_size=30,
)


@given(EVENTS)
def test_the_rest_is_as_it_was(events: list[Event]) -> None:
    """The newest state, the order of other events, and whether each link was lost before it is ready."""
    kept = left(*events)
    others = [event for event in events if not isinstance(event, LinkChanged)]
    assert [event for event in kept if not isinstance(event, LinkChanged)] == others
    for index in (2, 3):
        before, after = _states(events, index), _states(kept, index)
        assert after[-1:] == before[-1:]
        assert len(after) <= len(before)
        for run, merged in zip(_runs(events, index), _runs(kept, index), strict=True):
            assert merged[-1] == run[-1]
            lost = any(not state.ready for state in run)
            assert any(not state.ready for state in merged) == lost or not run[-1].ready
            assert len(merged) <= 2


def _states(events: list[Event], index: int) -> list[Link]:
    return [e.link for e in events if isinstance(e, LinkChanged) and e.link.index == index]


def _runs(events: list[Event], index: int) -> list[list[Link]]:
    """Return the states of a link, in lists of one name between removals."""
    runs: list[list[Link]] = []
    last: Link | None = None
    for event in events:
        if event == LinkRemoved(index):
            last = None
        elif isinstance(event, LinkChanged) and event.link.index == index:
            if last is None or last.name != event.link.name:
                runs.append([])
            runs[-1].append(event.link)
            last = event.link
    return runs
