"""Passes what happens to links, addresses and frames to the interfaces concerned."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import final

from autoip.daemon.host import Host
from autoip.daemon.interface import Interface
from autoip.daemon.protocols import ArpListener
from autoip.daemon.served import Served
from autoip.kernel.model import (
    AddressAdded,
    AddressRemoved,
    Event,
    LinkChanged,
    LinkRemoved,
    Resync,
    RouteRemoved,
)


@final
class Distribution:
    """Knows by index, name and token which interface something is about.

    Args:
        interfaces: returns those that are served now.
        host: takes each event in first.
        listener: has the frames.
        served: follows the links; None: the interfaces are the same from start to end.
        log: the program's logger.
    """

    def __init__(
        self,
        interfaces: Callable[[], Sequence[Interface]],
        host: Host,
        listener: ArpListener,
        served: Served | None,
        log: logging.Logger,
    ) -> None:
        self._interfaces = interfaces
        self._host = host
        self._listener = listener
        self._served = served
        self._log = log
        self._own_macs: frozenset[bytes] = frozenset()

    def event(self, event: Event) -> None:
        """Take in news of the kernel, and pass it on; a bug in that costs only this event."""
        try:
            self._event(event)
        except Exception:  # noqa: BLE001 (a bug must not end the process)
            self._log.exception("internal error in %s", type(event).__name__)

    def _event(self, event: Event) -> None:
        new = self._host.apply(event)
        match event:
            case LinkChanged() | LinkRemoved():
                self._links_changed()
            case AddressAdded(address=address):
                for interface in self._interfaces():
                    interface.address_added(address, new=new)
            case AddressRemoved(address=address):
                for interface in self._on_links((address.index,)):
                    interface.address_removed(address)
            case RouteRemoved(route=route) if route.ours and route.index is not None:
                self.losses((route.index,))
            case Resync():
                self._links_changed()
                for interface in self._interfaces():
                    interface.resynchronise()

    def losses(self, indexes: Iterable[int] | None) -> None:
        """Report the loss of rules, routes or filters of the interfaces with these numbers; None: of any."""
        for interface in self._on_links(indexes):
            interface.lost_belongings()

    def _on_links(self, indexes: Iterable[int] | None) -> list[Interface]:
        linked = [(one.link.index, one) for one in self._interfaces() if one.link is not None]
        return [one for index, one in linked if indexes is None or index in indexes]

    def _links_changed(self) -> None:
        self.know_own_macs()
        for interface in self._interfaces():
            link = self._host.link(interface.name)
            # The master of a port may have another name.
            if link is None or link != interface.link or link.is_port:
                interface.link_changed(link)
        if self._served is not None:
            self._served.follow(self._host.links)

    def know_own_macs(self) -> None:
        """Have the listener take frames of this host's hardware addresses for no conflicts."""
        if self._own_macs != self._host.macs:
            self._own_macs = self._host.macs
            self._listener.own(self._own_macs)

    def frames(self) -> None:
        """Handle the conflicts that wait in the listener's queue."""
        by_token = {i.token: i for i in self._interfaces() if i.token is not None}
        before = self._listener.lost
        for received in self._listener.drain():
            if (interface := by_token.get(received.token)) is not None:
                interface.received(received)
        if lost := self._listener.lost - before:
            self._log.debug("%d conflicts dropped: more came at once than the queue holds", lost)
