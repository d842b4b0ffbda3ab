"""The tempo of a demo follows from what the machine was measured to carry."""

import pytest

from shunter.demo.machine import (
    EXPECTED_MIN,
    PROBES,
    TEMPOS,
    USUAL,
    WHOLE_TEMPOS,
    Measure,
    Tempo,
    choose,
    expected_share,
    probes,
    thinned,
    told,
)
from shunter.demo.trace import TraceRow, load_rows
from streams.config.declarations import load_fleet, load_policy
from topics import encode, parse_request

FLEET, POLICY = load_fleet(None), load_policy(None)
ROWS = load_rows()


def chats(count: int, at: float = 0.0) -> list[TraceRow]:
    return [TraceRow(n, at, "chat", "llama-3.1-8b", 100, 10, None) for n in range(1, count + 1)]


def test_who_comes_behind_more_than_can_be_served_in_time_is_late():
    # A first token is due after 1.5 s; 0.05 s of that are the way itself.
    assert expected_share(chats(100), POLICY, 1.0, 100.0) == 1.0
    assert expected_share(chats(200), POLICY, 1.0, 100.0) == pytest.approx(145 / 200, abs=0.006)
    # At twice the speed there is half the time.
    assert expected_share(chats(200), POLICY, 2.0, 100.0) == pytest.approx(70 / 200, abs=0.006)
    # A queue that has emptied delays nobody.
    assert expected_share([*chats(100), *chats(100, at=2.0)], POLICY, 1.0, 100.0) == 1.0


def test_what_waits_for_an_answer_alone_has_until_its_deadline():
    rows = [TraceRow(1, 0.0, "embedding", "minilm-embedding", 10, 0, None)] * 500
    assert expected_share(rows, POLICY, 1.0, 10.0) == 1.0
    assert expected_share(rows, POLICY, 1.0, 0.5) < 1.0


def test_a_faster_machine_is_never_given_less():
    choices = [choose(ROWS, POLICY, per_s) for per_s in (20, 50, 100, 200, 300, 400, 800, 3000)]
    order = [TEMPOS.index(choice.tempo) for choice in choices]
    assert order == sorted(order, reverse=True)
    assert choices[-1].tempo == TEMPOS[0]
    assert len(choices[-1].rows) == len(ROWS)
    assert all(c.expected >= EXPECTED_MIN for c in choices[2:])


def test_a_slow_machine_is_given_fewer_requests_before_less_speed():
    # Else the processes are started anew, and the demo takes longer than two minutes.
    assert choose(ROWS, POLICY, 90.0).tempo.speed == USUAL.speed


def test_a_machine_that_keeps_no_pace_gets_the_least_and_is_told():
    choice = choose(ROWS, POLICY, 0.5)
    assert choice.tempo == TEMPOS[-1]
    assert choice.expected < EXPECTED_MIN
    assert "it keeps up with no less" in told(Measure(240, 480.0), choice, len(ROWS))


def test_the_user_s_number_of_requests_stays():
    for per_s in (5, 50, 500, 5000):
        assert len(choose(ROWS[:300], POLICY, per_s, WHOLE_TEMPOS).rows) == 300
    assert USUAL in TEMPOS
    assert USUAL in WHOLE_TEMPOS


def test_what_was_measured_and_chosen_is_one_line():
    choice = choose(ROWS, POLICY, 5000.0)
    line = told(Measure(240, 0.048), choice, len(ROWS))
    assert line.startswith("This machine carries 5000 requests/s: 240 at once were answered in")
    assert "all 2,000 requests are sent, 4 times as fast" in line
    assert "\n" not in line
    thin = choose(ROWS, POLICY, 180.0)
    assert "500 of 2,000 requests" in told(Measure(240, 1.6), thin, len(ROWS))


def test_thinning_keeps_the_span_and_the_order():
    some = thinned(ROWS, 0.25)
    assert len(some) == 500
    assert [row.arrival_s for row in some] == sorted(row.arrival_s for row in some)
    assert some[0] == ROWS[0]
    assert thinned(ROWS[:1], 0.25) == ROWS[:1]
    assert Tempo(3.0).share == 1.0


def test_probes_are_requests_that_each_pool_with_embeddings_serves():
    found = list(probes(FLEET, "probe"))
    assert len({each["id"] for each in found}) == PROBES
    pools = {each["constraints"]["pools"][0] for each in found}
    serving = {
        name
        for name, pool in FLEET.pools.items()
        if any(s.model == "minilm-embedding" for s in pool.serves)
    }
    assert pools == serving
    for each in found:
        assert parse_request(encode(each), bytes_max=10_000).model == "minilm-embedding"


def test_a_fleet_without_embeddings_has_none():
    declared = FLEET.model_copy(update={"pools": {"silicon-us": FLEET.pools["silicon-us"]}})
    assert list(probes(declared, "probe")) == []
