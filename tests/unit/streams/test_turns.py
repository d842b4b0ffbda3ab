"""Of what one poll of a partition brings, urgent requests are decided on first."""

from stream_cases import Yard, route

from streams.router.turns import in_turn
from topics import BadRecordError, parse_request


async def test_urgent_requests_of_a_poll_go_first_in_their_lane() -> None:
    yard = Yard()
    tiers = {"a": "auto", "b": "default", "c": "priority", "d": "auto", "e": "priority"}
    for name, tier in tiers.items():
        yard.publish(id=name, service_tier=tier)
    await route(yard)
    order = [record.key for record in yard.lane("premium-eu", "direct", 0)]
    assert order == [b"c", b"e", b"a", b"b", b"d"]


def test_what_may_wait_is_decided_on_last_and_bad_records_stand_where_they_are() -> None:
    yard = Yard()
    tiers = ("flex", "auto", "batch", "priority", "default")
    records = [yard.publish(id=str(n), service_tier=tier) for n, tier in enumerate(tiers)]
    read = [parse_request(record.value, bytes_max=1 << 20) for record in records]
    bad = BadRecordError("decode", "not_json", "no JSON")
    found = in_turn(
        [*records, records[0]], [*read, bad], lambda _, name: 7 if name == "1" else None
    )
    assert [record.offset for record, _, _ in found] == [3, 1, 4, 0, 0, 2]
    assert [first for _, _, first in found] == [None, 7, None, None, None, None]
    assert found[3][1] is bad


async def test_the_first_of_an_id_is_the_first_of_its_partition() -> None:
    yard = Yard()
    yard.publish(id="twice", service_tier="auto", tenant="first")
    yard.publish(id="twice", service_tier="priority", tenant="second")
    await route(yard)
    (duplicate,) = yard.evidence("duplicate")
    assert duplicate.tenant == "second"
    (kept,) = yard.evidence("placed")
    assert kept.tenant == "first"
