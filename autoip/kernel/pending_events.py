"""Events that were read and not handled yet: of a link that flaps only the newest state, and that it was lost."""

from __future__ import annotations

from collections import OrderedDict
from typing import final

from autoip.kernel.model import Event, Link, LinkChanged, LinkRemoved


@final
class PendingEvents:
    """A queue of events in the order in which the kernel reported them.

    A new state of a link takes the place of the former ones, but for the loss that came before a link that is
    ready: whoever handles the events must notice that it was lost. States with another name, hardware address or
    master, states before a removal, and all other events stay as they are.
    """

    def __init__(self) -> None:
        self._events: OrderedDict[int, Event] = OrderedDict()  # by number, in order
        self._number = 0
        self._runs: dict[int, list[int]] = {}  # by link: the numbers of its last states

    def __len__(self) -> int:
        return len(self._events)

    def take(self) -> Event:
        """Remove and return the first event.

        Raises:
            KeyError: there is none.
        """
        _, event = self._events.popitem(last=False)
        if not self._events:
            self._runs.clear()
        return event

    def add(self, event: Event) -> None:
        """Append an event; the state of a link may replace one that waits."""
        if isinstance(event, LinkChanged):
            self._add_state(event)
            return
        if isinstance(event, LinkRemoved):
            self._runs.pop(event.index, None)
        self._append(event)

    def _add_state(self, event: LinkChanged) -> None:
        link = event.link
        waiting = {number: self._state(number) for number in self._runs.get(link.index, ())}
        run = {number: state for number, state in waiting.items() if state is not None}
        if any(_identity(state) != _identity(link) for state in run.values()):
            run = {}  # these stay
        losses = [number for number, state in run.items() if link.ready and not state.ready]
        replaced = [number for number in run if number not in losses]
        for number in replaced[1:]:
            del self._events[number]
        if replaced:
            self._events[replaced[0]] = event
        else:
            self._append(event)
        self._runs[link.index] = [*losses, replaced[0] if replaced else self._number]

    def _state(self, number: int) -> Link | None:
        """Return the link of an event that waits; None: it was taken."""
        event = self._events.get(number)
        return event.link if isinstance(event, LinkChanged) else None

    def _append(self, event: Event) -> None:
        self._number += 1
        self._events[self._number] = event


def _identity(link: Link) -> tuple[object, ...]:
    """Return what makes another interface of a link for those who handle its events."""
    return link.name, link.mac, link.hardware_type, link.master, link.port_kind, link.altnames
