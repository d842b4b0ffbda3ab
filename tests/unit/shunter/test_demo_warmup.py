"""The first requests of a demo: one for each lane, which a cold start makes nobody miss."""

import orjson
from typer.testing import CliRunner

from policies import tag
from shunter.cli import app
from shunter.demo.rules import Rules
from shunter.demo.warmup import warm_ups
from streams.config.declarations import load_fleet, load_policy
from topics import encode, parse_request

FLEET, POLICY = load_fleet(None), load_policy(None)


def test_each_direct_lane_gets_a_request_that_may_go_there_and_has_time():
    found = list(warm_ups(FLEET, 4, "again"))
    direct = [name for name, pool in FLEET.pools.items() if "direct" in pool.lanes]
    places = [(each.request["constraints"]["pools"][0], each.partition) for each in found]
    assert places == [(name, number) for name in direct for number in range(4)]
    assert len({each.id for each in found}) == len(found)
    rules = Rules(FLEET, POLICY)
    for each, (pool, _) in zip(found, places, strict=True):
        parsed = parse_request(encode(each.request), bytes_max=10_000)
        profile = tag(parsed, POLICY, received_at=1.0, now=1.0, ingest_partition=0).profile
        precision = FLEET.pools[pool].serves[0].precision
        assert rules.allows({**each.request, "task": profile.task}, pool, precision)
        assert not profile.batchable
        assert profile.ttft_s is None or profile.ttft_s >= 10


def test_each_is_placed_on_its_lane():
    for each in warm_ups(FLEET, 1):
        words = ["policy", "explain", "-", "--json"]
        told = CliRunner().invoke(app, words, input=encode(each.request))
        decided = orjson.loads(told.output)
        assert (decided["action"], decided["reason"]) == ("place", "only_candidate"), each.id
