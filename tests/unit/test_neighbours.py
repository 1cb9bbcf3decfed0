"""Which link each neighbour is reached by: `autoip.core.neighbours`, in the test's time."""

from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import given, settings
from hypothesis import strategies as st

from autoip.core.neighbours import (
    ASK_INTERVAL,
    CHECK_INTERVAL,
    CHECK_NUM,
    LINK_MAX,
    QUESTIONS_MAX,
    AddRoute,
    Ambiguous,
    Ask,
    Effect,
    Neighbours,
    RemoveRoute,
)
from tests.unit.fake_kernel import mac_of

X, Y = IPv4Address("169.254.7.7"), IPv4Address("169.254.8.8")
HERE, THERE, THIRD = 2, 3, 4
ONE, OTHER = mac_of(1), mac_of(2)
SILENCE = CHECK_NUM * CHECK_INTERVAL


def on(*links: int) -> Neighbours:
    core = Neighbours()
    for link in links:
        core.join(link)
    return core


def full(core: Neighbours, link: int = HERE) -> list[IPv4Address]:
    addresses = [IPv4Address("169.254.100.0") + number for number in range(LINK_MAX)]
    for number, address in enumerate(addresses):
        core.learn(link, address, mac_of(100 + number), 0)
    return addresses


def silence(core: Neighbours, since: float) -> list[Effect]:
    """What follows if nobody answers from now on."""
    effects: list[Effect] = []
    for number in range(1, CHECK_NUM + 1):
        effects += core.handle_timer(since + number * (CHECK_INTERVAL + 0.001))
    return effects


def test_a_neighbour_gets_a_route_once() -> None:
    core = on(HERE, THERE)
    assert core.learn(HERE, X, ONE, 0) == [AddRoute(X, HERE)]
    assert core.learn(HERE, X, ONE, 1) == []
    assert core.nothing_new(HERE) == {(X, ONE)}
    assert core.nothing_new(THERE) == set()
    assert core.next_timer() is None
    assert not core.on(HERE)[0].ambiguous


def test_who_moves_is_reached_there_as_soon_as_the_first_link_is_silent() -> None:
    core = on(HERE, THERE)
    core.learn(HERE, X, ONE, 0)
    assert core.learn(THERE, X, ONE, 10) == [Ask(X, HERE)]
    assert core.nothing_new(HERE) == set()  # its answer must be let through
    assert core.handle_timer(10 + CHECK_INTERVAL - 0.01) == []
    assert core.next_timer() == 10 + CHECK_INTERVAL
    effects = silence(core, 10)
    assert effects == [
        Ask(X, HERE),
        Ask(X, HERE),
        RemoveRoute(X, HERE),
        AddRoute(X, THERE),
    ]
    assert [one.mac for one in core.on(THERE)] == [ONE]
    assert core.on(HERE) == [] and core.next_timer() is None
    assert SILENCE < 3


def test_who_answers_stays() -> None:
    core = on(HERE, THERE)
    core.learn(HERE, X, ONE, 0)
    core.learn(THERE, X, OTHER, 10)
    [note] = core.learn(HERE, X, ONE, 10.1)
    assert note == Ambiguous(X, HERE, ONE, THERE, OTHER)
    assert silence(core, 10) == []
    [found] = core.on(HERE)
    assert found.ambiguous
    # The rival's further frames teach nothing; those of a third host would.
    assert core.nothing_new(THERE) == {(X, OTHER)}


def test_an_ambiguous_address_is_reported_once() -> None:
    core = on(HERE, THERE)
    core.learn(HERE, X, ONE, 0)
    for at in (10.0, 20.0, 30.0):
        assert core.learn(THERE, X, OTHER, at) == [Ask(X, HERE)]
        assert len(core.learn(HERE, X, ONE, at + 0.1)) == (at == 10)


def test_one_host_on_two_links_is_not_ambiguous() -> None:
    core = on(HERE, THERE)
    core.learn(HERE, X, ONE, 0)
    core.learn(THERE, X, ONE, 10)
    assert core.learn(HERE, X, ONE, 10.1) == []
    [found] = core.on(HERE)
    assert not found.ambiguous
    assert core.nothing_new(THERE) == {(X, ONE)}


def test_the_rival_is_reached_when_the_link_of_the_first_goes() -> None:
    core = on(HERE, THERE)
    core.learn(HERE, X, ONE, 0)
    core.learn(HERE, Y, ONE, 0)
    core.learn(THERE, X, OTHER, 10)
    core.learn(HERE, X, ONE, 10.1)
    effects = core.leave(HERE, 20)
    assert effects == [RemoveRoute(Y, HERE), RemoveRoute(X, HERE), AddRoute(X, THERE)]


def test_an_address_is_checked_once_a_second_and_once_at_a_time() -> None:
    core = on(HERE, THERE, THIRD)
    core.learn(HERE, X, ONE, 0)
    assert core.learn(THERE, X, OTHER, 10) == [Ask(X, HERE)]
    assert core.learn(THIRD, X, OTHER, 10 + 1.1 * ASK_INTERVAL) == []
    core.learn(HERE, X, ONE, 11.15)
    assert core.learn(THIRD, X, OTHER, 11.2) == [Ask(X, HERE)]
    core.learn(HERE, X, ONE, 11.3)
    assert core.learn(THIRD, X, mac_of(3), 11.2 + 0.9 * ASK_INTERVAL) == []
    assert core.learn(THIRD, X, mac_of(3), 11.2 + 1.1 * ASK_INTERVAL) == [Ask(X, HERE)]


def test_nobody_is_ambiguous_with_a_host_on_a_link_that_is_gone() -> None:
    core = on(HERE, THERE)
    core.learn(HERE, X, ONE, 0)
    core.learn(THERE, X, OTHER, 10)
    core.learn(HERE, X, ONE, 10.1)
    core.leave(THERE, 11)
    assert [one.rival for one in core.on(HERE)] == [None]


def test_a_check_ends_with_its_link() -> None:
    core = on(HERE, THERE, THIRD)
    core.learn(HERE, X, ONE, 0)
    core.learn(THERE, X, OTHER, 10)
    core.leave(THERE, 10.1)
    assert core.next_timer() is None and silence(core, 10) == []
    core.learn(THIRD, X, OTHER, 20)
    assert core.leave(HERE, 20.1) == [RemoveRoute(X, HERE), AddRoute(X, THIRD)]
    assert core.next_timer() is None


def test_silence_does_not_count_where_frames_were_lost() -> None:
    core = on(HERE, THERE)
    core.learn(HERE, X, ONE, 0)
    core.learn(THERE, X, OTHER, 10)
    core.lost(HERE, 10.5)
    assert silence(core, 10) == [Ask(X, HERE), Ask(X, HERE)]
    assert [one.address for one in core.on(HERE)] == [X]
    # Frames that were lost before do not matter.
    core.learn(THERE, X, OTHER, 20)
    assert silence(core, 20)[-1] == AddRoute(X, THERE)


def test_an_unknown_destination_is_asked_for_on_the_other_links() -> None:
    core = on(HERE, THERE, THIRD)
    assert core.unknown(HERE, X, 10) == [Ask(X, THERE), Ask(X, THIRD)]
    assert core.unknown(HERE, X, 10 + ASK_INTERVAL - 0.01) == []
    assert core.unknown(HERE, X, 10 + ASK_INTERVAL) == [Ask(X, THERE), Ask(X, THIRD)]
    assert core.learn(THIRD, X, ONE, 11.2) == [AddRoute(X, THIRD)]
    assert core.unknown(THIRD, X, 20) == []


def test_a_route_that_somebody_removed_is_made_again() -> None:
    core = on(HERE, THERE)
    core.learn(THERE, X, ONE, 0)
    assert core.unknown(HERE, X, 10) == [AddRoute(X, THERE)]
    assert core.unknown(HERE, X, 10.5) == []


def test_questions_are_bounded() -> None:
    core = on(HERE, THERE)
    asked = [core.unknown(HERE, X + number, 10) for number in range(1000)]
    assert sum(map(len, asked)) == QUESTIONS_MAX
    assert len(core.unknown(HERE, Y, 11)) == 1
    assert len(core._asked) <= 2 * QUESTIONS_MAX


def test_whom_the_kernel_gives_up_is_looked_for_elsewhere() -> None:
    core = on(HERE, THERE)
    core.learn(HERE, X, ONE, 0)
    assert core.failed(THERE, X, 5) == []
    assert core.failed(HERE, X, 10) == [RemoveRoute(X, HERE), Ask(X, THERE)]
    assert core.failed(HERE, Y, 10) == [Ask(Y, THERE)]
    core.learn(HERE, X, ONE, 20)
    core.learn(THERE, X, OTHER, 20)
    assert core.failed(HERE, X, 20.1) == [RemoveRoute(X, HERE), AddRoute(X, THERE)]
    assert core.next_timer() is None


def test_strangers_do_not_displace_who_answers() -> None:
    core = on(HERE, THERE)
    addresses = full(core)
    at = 10.0
    for number in range(300):
        at += 0.1
        stranger = IPv4Address("169.254.200.0") + number % 256
        for effect in core.learn(HERE, stranger, mac_of(9000 + number), at):
            assert isinstance(effect, Ask)
            index = addresses.index(effect.address)
            assert core.learn(HERE, effect.address, mac_of(100 + index), at) == []
        assert core.handle_timer(at) == []
    assert {one.address for one in core.on(HERE)} == {*addresses}


def test_who_does_not_answer_leaves_its_place_to_a_new_one() -> None:
    core = on(HERE, THERE)
    addresses = full(core)
    core.learn(HERE, addresses[0], mac_of(100), 1)  # now the second one is the oldest
    assert core.learn(HERE, X, ONE, 10) == [Ask(addresses[1], HERE)]
    assert silence(core, 10)[-2:] == [RemoveRoute(addresses[1], HERE), AddRoute(X, HERE)]
    assert len(core.on(HERE)) == LINK_MAX


def test_a_full_link_that_loses_frames_takes_nobody() -> None:
    core = on(HERE, THERE)
    full(core)
    core.lost(HERE, 10)
    assert core.learn(HERE, X, ONE, 10 + SILENCE / 2) == []
    assert core.learn(THERE, X, ONE, 10) == [AddRoute(X, THERE)]


def test_losses_count_for_as_long_as_a_check_takes() -> None:
    for learned, effects in (
        (SILENCE, []),
        (SILENCE + 0.01, [Ask(IPv4Address("169.254.100.0"), HERE)]),
    ):
        core = on(HERE, THERE)
        full(core)
        core.lost(HERE, 0)
        assert core.learn(HERE, X, ONE, learned) == effects
    # And not for a link that left meanwhile, or was not there.
    core = on(THERE)
    core.lost(HERE, 10)
    for _ in range(2):
        core.join(HERE)
        full(core)
        assert core.learn(HERE, X, ONE, 10.1) == [Ask(IPv4Address("169.254.100.0"), HERE)]
        core.lost(HERE, 10.1)
        core.leave(HERE, 10.1)


def test_frames_are_lost_as_the_check_begins() -> None:
    core = on(HERE, THERE)
    core.learn(HERE, X, ONE, 0)
    core.learn(THERE, X, OTHER, 10)
    core.lost(HERE, 10)
    assert silence(core, 10) == 2 * [Ask(X, HERE)]
    assert [one.address for one in core.on(HERE)] == [X]
    assert core.learn(THERE, X, OTHER, 20) == [Ask(X, HERE)]


def test_a_check_is_due_again_after_the_interval() -> None:
    core = on(HERE, THERE)
    core.learn(HERE, X, ONE, 0)
    for at, effects in ((8, [Ask(X, HERE)]), (8.5, []), (8 + ASK_INTERVAL, [Ask(X, HERE)])):
        assert core.learn(THERE, X, OTHER, at) == effects
        core.learn(HERE, X, ONE, at)


def test_two_newcomers_wait_for_two_places() -> None:
    core = on(HERE, THERE)
    addresses = full(core)
    assert core.learn(HERE, X, ONE, 10) == [Ask(addresses[0], HERE)]
    assert core.learn(HERE, Y, OTHER, 10) == [Ask(addresses[1], HERE)]
    # One of them has turned up elsewhere, and takes no place here.
    assert core.learn(THERE, X, ONE, 10) == [AddRoute(X, THERE)]
    assert silence(core, 10)[-3:] == [
        RemoveRoute(addresses[0], HERE),
        RemoveRoute(addresses[1], HERE),
        AddRoute(Y, HERE),
    ]


def test_a_rival_teaches_nothing_new_on_its_own_link_alone() -> None:
    core = on(HERE, THERE, THIRD)
    core.learn(HERE, X, ONE, 0)
    core.learn(THERE, X, OTHER, 1)
    core.learn(HERE, X, ONE, 1.1)
    assert core.nothing_new(THERE) == {(X, OTHER)}
    assert core.nothing_new(THIRD) == set()


def test_reports_of_ambiguous_addresses_are_bounded() -> None:
    core = on(HERE, THERE)
    reports = 0
    for number in range(LINK_MAX + 20):
        address, at = IPv4Address("169.254.100.0") + number, number / 10
        core.learn(HERE, address, ONE, at)
        assert core.learn(THERE, address, OTHER, at) == [Ask(address, HERE)]
        reports += len(core.learn(HERE, address, ONE, at))
        core.failed(HERE, address, at)
        core.failed(THERE, address, at)
    assert reports == LINK_MAX


def test_checks_that_one_link_causes_are_bounded() -> None:
    """A stranger that claims all neighbours of another link makes few requests there."""
    assert (LINK_MAX, QUESTIONS_MAX) == (256, 16)
    for at in (0, 10):
        core = on(HERE, THERE, THIRD)
        addresses = full(core)
        effects = [effect for one in addresses for effect in core.learn(THERE, one, OTHER, at)]
        assert len(effects) == QUESTIONS_MAX
        assert core.learn(THIRD, addresses[-1], ONE, at) == [Ask(addresses[-1], HERE)]
        # A link that came anew is counted anew.
        core.leave(THERE, at)
        core.join(THERE)
        assert core.learn(THERE, addresses[-2], OTHER, at) == [Ask(addresses[-2], HERE)]


def test_a_route_of_before_counts_as_a_neighbour() -> None:
    core = on(HERE, THERE)
    assert core.learn(HERE, X, None, 0) == [AddRoute(X, HERE)]
    assert core.nothing_new(HERE) == set()
    assert core.learn(THERE, X, None, 1) == []
    assert core.learn(HERE, X, ONE, 2) == []
    assert core.nothing_new(HERE) == {(X, ONE)}


def test_a_link_that_is_not_listened_to_teaches_nothing() -> None:
    core = on(HERE)
    assert core.learn(THERE, X, ONE, 0) == []
    core.learn(HERE, X, ONE, 0)
    assert core.learn(THERE, X, OTHER, 5) == []
    assert core.leave(THERE, 0) == []
    core.lost(THERE, 0)
    assert core.on(THERE) == []


# Whatever happens.

_LINKS, _ADDRESSES, _MACS = (HERE, THERE, THIRD), [X + number for number in range(6)], (ONE, OTHER)
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(("learn", "learn", "unknown", "failed", "lost", "join", "leave", "wait")),
        st.sampled_from(_LINKS),
        st.sampled_from(_ADDRESSES),
        st.sampled_from(_MACS),
        st.floats(0, 2),
    ),
    max_size=60,
)


def _too_often(times: list[float]) -> bool:
    """Whether more than CHECK_NUM of a check, and as many of a question, were sent in ASK_INTERVAL."""
    return any(
        sum(0 <= later - at < ASK_INTERVAL for later in times) > 2 * CHECK_NUM for at in times
    )


@settings(max_examples=200, deadline=None)
@given(_STEPS)
def test_each_address_has_one_route_and_it_is_the_one_that_is_believed(
    steps: list[tuple[str, int, IPv4Address, bytes, float]],
) -> None:
    core, now = on(*_LINKS), 0.0
    joined = {*_LINKS}
    routes: dict[IPv4Address, int] = {}
    asked: dict[tuple[IPv4Address, int], list[float]] = {}

    def follow(effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case AddRoute(one, by):
                    assert routes.setdefault(one, by) == by
                case RemoveRoute(one, by):
                    assert routes.pop(one) == by
                case Ask(one, by):
                    asked.setdefault((one, by), []).append(now)
                    assert by in joined

    for what, link, address, mac, pause in steps:
        now += pause
        follow(core.handle_timer(now))
        effects: list[Effect] = []
        match what:
            case "learn":
                before = routes.get(address)
                new = core.learn(link, address, mac, now)
                # Never moved on somebody's word.
                assert before is None or RemoveRoute(address, before) not in new
                effects += new
            case "unknown":
                effects += core.unknown(link, address, now)
            case "failed":
                effects += core.failed(link, address, now)
            case "lost":
                core.lost(link, now)
            case "join":
                core.join(link)
                joined.add(link)
            case "leave":
                effects += core.leave(link, now)
                joined.discard(link)
        follow(effects)
        believed = {one.address: one.link for each in _LINKS for one in core.on(each)}
        assert believed == routes
        assert {*routes.values()} <= joined
        for each in _LINKS:
            rivals = [one.rival for one in core.on(each) if one.rival is not None]
            assert all(rival.link in joined - {each} for rival in rivals)
        at = core.next_timer()
        assert at is None or at > now - 1e-9
    last = now + 60
    for _ in range(CHECK_NUM):
        core.handle_timer(last)
        last += CHECK_INTERVAL
    assert core.next_timer() is None
    assert not any(map(_too_often, asked.values()))
