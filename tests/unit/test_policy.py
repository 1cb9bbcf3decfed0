"""Whether there should be an address: co-lease, co-lost, RFC 3927 section 1.9, under a virtual clock."""

from __future__ import annotations

from ipaddress import IPv4Address
from random import Random

import pytest

from autoip.core.policy import Gate, Kind, Policy, Superseded, Waiting
from autoip.kernel.model import Address

LEASE = IPv4Address("192.0.2.5")
OURS, OTHER = IPv4Address("169.254.1.2"), IPv4Address("169.254.3.4")
AFTER, LINGER = 10.0, 120.0


def fallback(after: float = AFTER, *, link: bool = True) -> Policy:
    policy = Policy(Kind.FALLBACK, after, LINGER)
    if link:
        policy.link(True, 100.0)
    return policy


def wanted(policy: Policy) -> bool:
    """A call, because mypy assumes that a compared attribute never changes."""
    return policy.wanted


def source(policy: Policy) -> IPv4Address | None:
    """A call for the same reason."""
    return policy.source


def source_of(policy: Policy) -> IPv4Address | None:
    """Return the source of new connections, if it is not the link-local address."""
    return policy.routable if policy.yields else None


def held(now: float = 110.0) -> Policy:
    policy = fallback()
    policy.handle_timer(now)
    assert wanted(policy)
    policy.negotiated(OURS, held=True)
    return policy


def test_alongside_wants_one_whatever_else_there_is() -> None:
    policy = Policy(Kind.ALONGSIDE, AFTER, LINGER)
    for routable in (None, LEASE, None):
        policy.addressed(routable, 5.0)
        assert wanted(policy)
        assert source_of(policy) is None
        assert policy.next_timer() is None


def test_fallback_waits_for_after_once_the_link_is_ready() -> None:
    policy = fallback(link=False)
    assert policy.next_timer() is None
    policy.handle_timer(1e9)
    assert not wanted(policy)
    policy.link(True, 100.0)
    policy.link(True, 105.0)  # reported again: it does not start anew
    assert policy.next_timer() == 110.0
    policy.addressed(None, 106.0)  # nor does the news that there is still none
    assert policy.next_timer() == 110.0
    policy.handle_timer(109.9)
    assert not wanted(policy)
    policy.handle_timer(110.0)
    assert wanted(policy)
    assert policy.next_timer() is None


def test_link_that_goes_while_waiting_starts_the_wait_anew() -> None:
    policy = fallback()
    policy.link(False, 109.0)
    policy.handle_timer(111.0)
    assert not wanted(policy)
    policy.link(True, 200.0)
    assert policy.next_timer() == 210.0


def test_link_that_goes_later_changes_nothing() -> None:
    policy = held()
    policy.link(False, 120.0)
    assert wanted(policy)
    policy.link(True, 121.0)
    assert wanted(policy)


def test_dhcp_fails_before_the_wait_is_over() -> None:
    policy = fallback(link=False)
    policy.failed()  # without a link DHCP has not had its chance
    policy.link(True, 100.0)
    assert not wanted(policy)
    policy.failed()
    assert wanted(policy)
    policy.addressed(LEASE, 101.0)
    policy.failed()
    assert not wanted(policy)


def test_fallback_without_wait() -> None:
    assert wanted(fallback(0.0))
    assert not wanted(fallback(0.5))
    policy = fallback(0.0)
    policy.addressed(LEASE, 100.0)
    policy.addressed(None, 101.0)
    assert wanted(policy)


def test_routable_address_before_the_wait_is_over() -> None:
    policy = fallback()
    policy.addressed(LEASE, 101.0)
    assert str(LEASE) in policy.why
    policy.handle_timer(1e9)
    assert not wanted(policy)
    assert policy.next_timer() is None


def test_news_that_changes_nothing() -> None:
    policy = held()
    policy.addressed(None, 111.0)
    assert wanted(policy) and not policy.yields and policy.next_timer() is None
    policy = fallback()
    policy.addressed(LEASE, 101.0)
    policy.addressed(LEASE, 102.0)
    assert not wanted(policy) and policy.next_timer() is None


def test_claim_under_way_is_not_finished_beside_a_routable_address() -> None:
    policy = fallback(0.0)
    policy.negotiated(OURS, held=False)
    policy.addressed(LEASE, 111.0)
    assert not wanted(policy)


def test_an_address_that_another_host_has_now_is_not_replaced_beside_a_routable_one() -> None:
    policy = held()
    policy.addressed(LEASE, 200.0)
    policy.negotiated(None, held=False)  # off, for the probe
    policy.negotiated(OURS, held=False)
    assert wanted(policy)
    policy.negotiated(OTHER, held=False)
    assert not wanted(policy) and policy.next_timer() is None
    policy = held()
    policy.negotiated(OTHER, held=False)
    policy.addressed(LEASE, 200.0)
    assert not wanted(policy)


class Fallback:
    """A policy and the address that it asks for, as the interface keeps it, with a connection that may last."""

    def __init__(self, random: Random) -> None:
        self.policy, self.now, self.random = held(), 110.0, random
        self.policy.link(True, self.now)
        self.connected = True
        self.lease: IPv4Address | None = None
        self.link, self.bound = True, True

    def happen(self) -> None:
        self.now += self.random.choice((0.001, 1.0, 4.9, 60.0, 1000.0))
        what = self.random.choice(
            ("link", "refresh", "removed", "lease", "claim", "claim", "nothing", "close")
        )
        if what == "link":
            self.link = not self.link
            self.policy.link(self.link, self.now)
        if what == "lease":
            self.lease = LEASE if self.lease is None else None
            self.policy.addressed(self.lease, self.now)
        if what == "close":
            self.connected = self.random.random() < 0.8
        self.policy.handle_timer(self.now)
        if self.policy.asks(self.now):
            assert self.policy.used == OURS  # else one asks for another's connections
            self.policy.connections(self.connected, self.now)
        self.bound = self.policy.wanted and self.link and (self.bound or what == "claim")
        self.bound = self.bound and what not in ("refresh", "removed")
        on = self.policy.wanted and self.link
        self.policy.negotiated(OURS if on else None, held=self.bound)


@pytest.mark.parametrize("seed", range(20))
def test_no_order_of_events_ends_a_connection(seed: int) -> None:
    """co-lease, co-lost: from the routable address's arrival to the end of the last connection."""
    random = Random(seed)
    released = 0
    for _ in range(100):
        fallback = Fallback(random)
        for _ in range(60):
            fallback.happen()
            if isinstance(fallback.policy.state, Superseded | Waiting):
                assert not fallback.connected
                released += 1
                break
            assert wanted(fallback.policy) and fallback.policy.used == OURS
    assert released > 10


def test_what_is_remembered_ends_with_the_last_connection() -> None:
    policy = held()
    policy.addressed(LEASE, 200.0)
    policy.handle_timer(320.0)
    policy.connections(False, 320.0)
    assert policy.used is None
    policy.negotiated(OURS, held=True)  # it is being taken off
    assert policy.used is None
    policy.addressed(None, 400.0)
    policy.handle_timer(410.0)
    policy.addressed(LEASE, 411.0)  # before a new claim
    assert not wanted(policy)


@pytest.mark.parametrize("kind", [Kind.FALLBACK, Kind.ALONGSIDE])
def test_what_a_policy_hands_over(kind: Kind) -> None:
    policy = held()
    policy.addressed(LEASE, 200.0)
    policy.permit(Gate.MASTER, False, "belongs to br0")
    other = Policy(kind, AFTER, LINGER)
    other.resume(policy.keep(), 201.0)
    assert not wanted(other) and other.why == "belongs to br0"
    assert other.routable == LEASE
    if kind is Kind.FALLBACK:
        assert other.keep() == policy.keep() and other.next_timer() == 320.0
    else:
        assert other.used is None and other.next_timer() is None


def test_linger_then_release() -> None:
    policy = held()
    policy.addressed(LEASE, 200.0)
    assert wanted(policy)
    assert source_of(policy) == LEASE
    policy.addressed(IPv4Address("192.0.2.6"), 250.0)  # another one: no second linger
    assert policy.next_timer() == 320.0
    policy.handle_timer(319.0)
    assert not policy.asks(319.0)
    policy.addressed(LEASE, 319.0)
    assert source(policy) == LEASE
    policy.handle_timer(320.0)
    assert wanted(policy)
    assert source_of(policy) == source(policy) == LEASE
    assert policy.asks(320.0)
    policy.connections(False, 320.0)
    assert not wanted(policy)
    assert source_of(policy) is source(policy) is None


def test_connections_keep_it() -> None:
    policy = held()
    policy.addressed(LEASE, 200.0)
    policy.handle_timer(320.0)
    for number in range(3):
        now = 320.0 + number * 5.0
        assert policy.asks(now)
        policy.connections(True, now)
        assert wanted(policy)
        assert not policy.asks(now)
        assert policy.next_timer() == now + 5.0
    policy.connections(False, 340.0)
    assert not wanted(policy)


@pytest.mark.parametrize("at", [250.0, 330.0], ids=["lingering", "draining"])
def test_routable_address_that_goes_before_the_release(at: float) -> None:
    policy = held()
    policy.addressed(LEASE, 200.0)
    policy.handle_timer(at)
    policy.addressed(None, at)
    assert wanted(policy)
    assert source_of(policy) is None
    policy.connections(False, at)  # an answer that is late
    assert wanted(policy)
    policy.addressed(LEASE, 400.0)
    assert policy.next_timer() == 400.0 + LINGER


def test_routable_address_that_goes_later_is_waited_for_again() -> None:
    policy = fallback()
    policy.addressed(LEASE, 101.0)
    policy.addressed(None, 500.0)
    assert not wanted(policy)
    assert policy.next_timer() == 510.0
    policy.link(False, 505.0)
    assert policy.next_timer() is None


def test_route_only() -> None:
    """fwd-onlink: never an address, and a route while there is a routable one."""
    policy = Policy(Kind.ROUTE_ONLY, 0.0, LINGER)
    policy.link(True, 100.0)
    assert not wanted(policy) and policy.next_timer() is None
    assert source(policy) is None
    policy.addressed(LEASE, 200.0)
    assert source(policy) == LEASE
    assert not wanted(policy) and policy.next_timer() is None
    policy.link(False, 250.0)
    policy.addressed(None, 300.0)
    policy.link(True, 400.0)
    policy.handle_timer(9999.0)
    assert source(policy) is None and not wanted(policy)


def test_what_comes_next_and_why_in_each_state() -> None:
    """What `autoip status` shows."""
    policy = fallback(link=False)
    seen = [(policy.step, policy.why)]
    policy.link(True, 100.0)
    seen.append((policy.step, policy.why))
    policy.handle_timer(110.0)
    seen.append((policy.step, policy.why))
    policy.negotiated(OURS, held=True)
    policy.addressed(LEASE, 200.0)
    seen.append((policy.step, policy.why))
    policy.handle_timer(320.0)
    seen.append((policy.step, policy.why))
    policy.connections(False, 320.0)
    seen.append((policy.step, policy.why))
    assert seen == [
        ("", "waits for the link"),
        ("claim", "waits 10 s for a routable address"),
        ("", "no routable address"),
        ("release", f"the interface has {LEASE}; ours stays 120 s longer"),
        ("look for connections", f"the interface has {LEASE}; connections use ours"),
        ("", f"the interface has {LEASE}"),
    ]


def test_why_of_the_other_kinds() -> None:
    assert Policy(Kind.ALONGSIDE, AFTER, LINGER).why == "wanted"
    policy = Policy(Kind.ROUTE_ONLY, AFTER, LINGER)
    assert policy.why == "only a route, from a routable address, once there is one"
    policy.addressed(LEASE, 200.0)
    assert policy.why == f"only a route, from {LEASE}"


@pytest.mark.parametrize("kind", [Kind.ALONGSIDE, Kind.FALLBACK])
def test_gate(kind: Kind) -> None:
    policy = Policy(kind, 0.0, LINGER)
    policy.link(True, 100.0)
    policy.permit(Gate.MANAGER, False, "another manager is not ready")
    assert not wanted(policy)
    assert policy.why == "another manager is not ready"
    policy.permit(Gate.MANAGER, True, "")
    assert wanted(policy)


def test_two_gates() -> None:
    """Each gate opens alone; the master's reason is reported first."""
    policy = Policy(Kind.ALONGSIDE, 0.0, LINGER)
    policy.link(True, 100.0)
    policy.permit(Gate.MANAGER, False, "not yet")
    policy.permit(Gate.MASTER, False, "belongs to br0")
    assert policy.why == "belongs to br0"
    policy.permit(Gate.MANAGER, True, "")
    assert not wanted(policy) and policy.why == "belongs to br0"
    policy.permit(Gate.MANAGER, False, "not yet")
    policy.permit(Gate.MASTER, True, "")
    assert not wanted(policy) and policy.why == "not yet"
    policy.permit(Gate.MANAGER, True, "")
    assert wanted(policy)


def test_a_port_has_no_route_either() -> None:
    """if-master: its route to link-local destinations would win over its master's."""
    policy = Policy(Kind.ROUTE_ONLY, 0.0, LINGER)
    policy.addressed(LEASE, 200.0)
    policy.permit(Gate.MANAGER, False, "not yet")
    assert source(policy) == LEASE
    policy.permit(Gate.MASTER, False, "belongs to br0")
    assert source(policy) is None
    assert policy.why == "belongs to br0"


@pytest.mark.parametrize(
    ("address", "scope", "routable"),
    [
        ("192.0.2.5", 0, True),
        ("10.0.0.1", 253, True),
        ("169.253.255.255", 0, True),
        ("169.254.7.7", 0, False),
        ("169.254.7.7", 253, False),
        ("127.0.0.2", 0, False),
        ("192.0.2.5", 254, False),
        ("0.0.0.0", 0, False),
    ],
)
def test_what_is_routable(address: str, scope: int, routable: bool) -> None:
    """Static addresses count; 169.254 addresses of others and 127/8 do not."""
    assert Address(2, IPv4Address(address), 24, scope, "eth0", None).routable is routable
