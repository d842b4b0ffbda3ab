"""The checker of the chaos run must find what it looks for: on made-up records."""

import asyncio
import dataclasses
import itertools
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import orjson
import pytest
import yaml
from cluster_faults import CLUSTER_FAULTS
from faults import FAULTS, LAST_FAULTS, grow_partitions
from ledger import Ledger
from load import BAD, DIRECT, MODEL, NOWHERE, PRECISE, REGULATED, Kind, Load, id_of, kind_of
from lost_tail import lose_tail
from recovery import MARGIN_S, QUIET_S, SLOW_S, Span, calm_after, is_quiet
from run import LAST_CLUSTER_FAULTS, Asked, command, schedule
from running_system import System
from silent_pool import MUTE, MuteServer, fleet_with
from table import ONE_BROKER, THREE_BROKERS, Seen, document, rows, takeover_rows, worst_rows, write
from takeovers import Kill, Taken, read_taken, takeover_s
from typer.testing import CliRunner

from shunter.cli import app
from topics import Placement
from topics.records import headers as h

PER_S = 50
NUMBERS = range(200)
ASKED = Asked(seed=7, rounds=2, rate=60, requests=0, only="", calm_s_max=30, table=None)


class Told:
    """A ledger to which one tells what it would have read."""

    def __init__(self) -> None:
        system = System("nowhere:1", "chaos", Path(), fleet=fleet_with(MuteServer()))
        self.topics = system.catalogue
        self.load, self.ledger = Load(system, PER_S), Ledger(system)
        self._offset = itertools.count()
        for number in NUMBERS:
            self.load.published_at.append(number / PER_S)

    def tell(self, topic: str, key: str, value: Any = None, headers: Any = ()) -> None:
        offset = next(self._offset)
        record = SimpleNamespace(
            offset=offset,
            timestamp=offset,
            partition=0,
            key=key.encode(),
            value=orjson.dumps(value),
            headers=tuple(headers),
        )
        self.ledger._take(topic, record)

    def step(self, number: int, step: str) -> None:
        name = id_of(number)
        self.tell(self.topics.evidence, name, {"request_id": name, "step": step})

    def result(self, number: int, took_s: float = 0.1, status: str = "completed") -> None:
        finished_at = self.load.published_at[number] + took_s
        timing = {
            "routed_at": finished_at - took_s / 2,
            "started_at": finished_at - took_s / 4,
            "finished_at": finished_at,
        }
        told = {"id": id_of(number), "status": status, "timing": timing}
        kind = kind_of(number)
        (region, *_), (precision, *_) = sorted(kind.regions), sorted(kind.precisions)
        told["placement"] = {"region": region, "precision": precision}
        self.tell(self.topics.results, id_of(number), told)

    def serve(self, number: int, took_s: float = 0.1) -> None:
        if kind_of(number) is NOWHERE:
            self.result(number, status="rejected")
            self.step(number, "rejected")
            return
        self.step(number, "placed")
        self.result(number, took_s)
        self.step(number, "executed")

    def serve_all(self) -> None:
        for number in NUMBERS:
            self.serve(number)

    def place(self, number: int, region: str, precision: str) -> None:
        placement = Placement("pool", "device", "variant", precision, region, "direct")
        lane = self.topics.pool_lane("premium-eu", "direct")
        self.tell(lane, id_of(number), headers=h.encoded(placement=placement).items())

    def problems(self) -> list[str]:
        return self.ledger.problems(self.load)


@pytest.fixture
def told() -> Told:
    return Told()


def first(kind: Kind) -> int:
    return next(number for number in NUMBERS if kind_of(number) is kind)


class TestLedger:
    def test_all_is_well_where_each_has_its_end(self, told: Told) -> None:
        told.serve_all()
        assert (told.problems(), told.ledger.missing(told.load)) == ([], 0)

    def test_what_may_not_be_in_kafka_may_be_missing_and_nothing_else(self, told: Told) -> None:
        told.load.unsure |= {id_of(3), id_of(49), f"{BAD}-70"}
        told.load.published_twice |= {49, 99}
        told.load.published_bad |= {f"{BAD}-70", f"{BAD}-141"}
        for number in NUMBERS:
            if number not in {3, 5}:
                told.serve(number)
        assert told.problems() == [
            f"{id_of(5)} has 0 results () and 0 ends ()",
            f"{id_of(99)} came 2 times, and is 0 times known as a duplicate",
            f"{BAD}-141 is 0 times evidenced as a dead letter",
        ]
        assert told.ledger.missing(told.load) == 1

    def test_what_kafka_has_lost_may_be_missing_and_is_told(self, told: Told) -> None:
        told.load.lost |= {id_of(3), id_of(5), id_of(49), f"{BAD}-70"}
        told.load.published_twice.add(49)
        told.load.published_bad.add(f"{BAD}-70")
        for number in NUMBERS:
            if number != 3:
                told.serve(number)
        assert told.problems() == []
        assert told.ledger.missing(told.load) == 0
        found = document(seen(told, [Span("all", 0.0, 4.0, 4.0)], [], []), "a command")
        assert "lost 4 records that Kafka had acknowledged;\n2 of them had been read" in found
        told.result(5)
        assert len(told.problems()) == 1

    def test_each_copy_counts(self, told: Told) -> None:
        told.load.published_twice.add(49)
        told.load.published_bad.add(f"{BAD}-70")
        copies = told.load.copies()
        assert (copies[id_of(48)], copies[id_of(49)], copies[f"{BAD}-70"]) == (1, 2, 1)
        assert len(copies) == len(NUMBERS) + 1

    def test_what_came_though_nobody_knew_has_one_end(self, told: Told) -> None:
        told.load.unsure.add(id_of(3))
        told.serve_all()
        told.result(3)
        told.step(3, "duplicate")
        assert told.problems() == [
            f"{id_of(3)} has 2 results (completed) and 1 ends (completed)",
            f"{id_of(3)} came 1 times, and is 1 times known as a duplicate",
        ]

    def test_duplicates_are_told_apart(self, told: Told) -> None:
        told.serve_all()
        told.load.published_twice.add(49)
        told.step(99, "duplicate")
        assert len(told.problems()) == 2

    def test_a_bad_record_is_a_dead_letter_once(self, told: Told) -> None:
        told.serve_all()
        for key in (f"{BAD}-70", f"{BAD}-70", f"{BAD}-9"):
            told.tell(told.topics.dead_letters, key)
        for key in (f"{BAD}-70", f"{BAD}-141", f"{BAD}-212", f"{BAD}-212"):
            told.tell(told.topics.evidence, key, {"request_id": key, "step": "dead_lettered"})
        told.load.published_bad |= {f"{BAD}-70", f"{BAD}-141", f"{BAD}-212"}
        wrong = [
            f"{BAD}-212 is 2 times evidenced as a dead letter",
            f"{BAD}-70 is 2 dead letters, and evidenced",
            f"{BAD}-9 was never published",
        ]
        assert told.problems() == [f"{BAD}-141 is 0 dead letters, and evidenced", *wrong]
        told.load.letters_deleted = True
        assert told.problems() == wrong

    def test_a_placement_breaks_no_constraint_though_another_serves(self, told: Told) -> None:
        told.serve_all()
        told.place(first(REGULATED), "us-east", "int8")
        told.place(first(PRECISE), "eu-west", "fp8")
        told.place(first(NOWHERE), "eu-west", "fp8")
        told.place(first(DIRECT), "eu-west", "fp8")
        told.tell(told.topics.pool_lane(MUTE, "batch"), id_of(0))
        missing = "the header shunter-placement is missing"
        found = told.problems()
        assert found[:3] == [
            f"{id_of(first(REGULATED))} was sent to pool, in us-east",
            f"{id_of(first(PRECISE))} was sent to pool, in fp8",
            f"{id_of(first(NOWHERE))} was sent to pool, in eu-west",
        ]
        assert found[3:] == [
            f"{id_of(0)} is in a lane without its placement: {missing}",
        ]


class TestCalm:
    def test_it_is_quiet_once_all_of_some_seconds_were_in_time(self, told: Told) -> None:
        told.serve_all()
        assert is_quiet(told.ledger, told.load, 0.5, 0.5 + QUIET_S)
        assert not is_quiet(told.ledger, told.load, 0.6, 0.5 + QUIET_S)

    def test_it_is_not_while_one_is_late_or_has_no_result(self, told: Told) -> None:
        for number in NUMBERS:
            if number != 100:
                told.serve(number, took_s=1.1 if number == 20 else 0.1)
        assert is_quiet(told.ledger, told.load, -3.0, 0.3)
        assert not is_quiet(told.ledger, told.load, -3.0, 0.5)
        assert not is_quiet(told.ledger, told.load, -3.0, 2.1)

    def test_it_is_not_while_nothing_is_published(self, told: Told) -> None:
        assert not is_quiet(told.ledger, told.load, 0.0, 100.0)

    async def test_it_is_waited_for_no_longer_than_was_asked_for(self, told: Told) -> None:
        ended = time.time() - SLOW_S - MARGIN_S
        async with asyncio.timeout(5):
            until, is_calm = await calm_after(ended, told.ledger, told.load, 0.1)
        assert (until - ended >= 0.1, is_calm) == (True, False)


def seen(told: Told, spans: list[Span], killed: list[Kill], taken: list[Taken]) -> Seen:
    return Seen(told.load, told.ledger, spans, 1, killed, taken, 0, [], 0.0, 60.0)


class TestTable:
    def test_what_was_not_served_counts_and_is_slow(self, told: Told) -> None:
        for number in NUMBERS:
            if number == 100:
                told.result(number, status="expired")
            else:
                told.serve(number, took_s=2.0 if number == 62 else 0.1)
        span = Span("a fault", 0.0, 1.0, 4.0)
        cut_off = Span("another", 0.0, 1.0, 31.0, is_calm=False)
        found = seen(told, [span, cut_off], [], [])
        assert rows(found) == [
            ("a fault", "1", "0.10", "2.0", "1", "1.0"),
            ("another", "1", "0.10", "2.0", "1", "> 30"),
        ]

    def test_recovery_is_nothing_where_nothing_was_slow_afterwards(self, told: Told) -> None:
        for number in NUMBERS:
            told.serve(number, took_s=2.0 if number < 20 else 0.1)
        found = seen(told, [Span("a fault", 0.0, 1.0, 4.0)], [], [])
        assert [row[-1] for row in rows(found)] == ["0.0"]

    def test_it_tells_where_the_worst_of_a_fault_waited(self, told: Told) -> None:
        for number in NUMBERS:
            told.serve(number, took_s=3.0 if number == 20 else 0.1)
        told.load.acknowledged_at[id_of(20)] = told.load.published_at[20] + 1.25
        named = [Span("a fault", 0.0, 1.0, 4.0), Span("nothing was served", 90.0, 91.0, 92.0)]
        assert worst_rows(seen(told, named, [], [])) == [("a fault", "1.2", "1.5", "2.2", "3.0")]

    def test_takeovers_are_told_beside_their_target(self, told: Told) -> None:
        told.serve_all()
        names = ("in place", "away", "nothing to take over", "for ever", "with a broker")
        spans = [Span(name, 10.0 * n, 10.0 * n + 5, 10.0 * n + 9) for n, name in enumerate(names)]
        killed = [
            Kill(("a",), 1.0, in_place=True),
            Kill(("b",), 11.0, in_place=False),
            Kill(("c",), 21.0, in_place=True),
            Kill(("a",), 31.0, in_place=True),
            Kill(("b",), 41.0, in_place=True, kafka_s=6.0),
        ]
        taken = [
            Taken(0.1, "p", "a"),
            Taken(0.2, "q", "b"),
            Taken(4.5, "p", "a"),
            Taken(18.0, "q", "a"),
            Taken(40.5, "r", "b"),
            Taken(49.5, "r", "b"),
        ]
        found = seen(told, spans, killed, taken)
        assert takeover_rows(found) == [
            ("in place", "1", "3.5", "3.5", "3", "not met"),
            ("away", "1", "7.0", "7.0", "8", "met"),
            ("for ever", "1", "never", "never", "3", "not met"),
            ("with a broker", "1", "8.5", "8.5", "9", "met"),
        ]
        assert "| for ever | 1 | never | never | 3 | not met |" in document(found, "a command")

    def test_on_three_brokers_each_process_that_ends_counts_to_a_fault(self) -> None:
        told = Told()
        spans = [Span("one", 100.0, 110.0, 120.0), Span("two", 130.0, 140.0, 150.0)]
        ends = [(105.0, "router"), (119.0, "router-b"), (125.0, "router"), (140.0, "router")]
        bare = [(101.0, 3.26), (119.0, 1.0), (125.0, 9.0)]
        found = dataclasses.replace(seen(told, spans, [], []), ends=ends, bare=bare)
        told_of = [row[-2:] for row in rows(found, tells_ends=True)]
        assert told_of == [("2", "3.3"), ("1", "none")]
        assert "| ended | bare |" in document(found, "a command", THREE_BROKERS)
        assert "| ended |" not in document(found, "a command")

    def test_what_follows_the_document_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "found.md"
        title, end = ONE_BROKER.title, ONE_BROKER.end
        write(path, f"{title}\nold\n{end}")
        path.write_text(path.read_text() + "\n## Kept\n")
        write(path, f"{THREE_BROKERS.title}\nold\n{THREE_BROKERS.end}", THREE_BROKERS)
        write(path, f"{title}\nnew\n{end}")
        three = f"{THREE_BROKERS.title}\nnew\n{THREE_BROKERS.end}"
        write(path, three, THREE_BROKERS)
        assert path.read_text() == f"{title}\nnew\n{end}\n## Kept\n{three}"


TOOK = "INFO streams.engine.transactor: took over"


class TestTakeovers:
    def test_it_lasts_until_the_last_partition_of_the_dead_was_taken(self, tmp_path: Path) -> None:
        (tmp_path / "router.log").write_text(
            f"2026-11-27 14:00:00,000 {TOOK} x.requests[0] at offset 0\n"
            f"2026-11-27 14:00:00,500 {TOOK} x.held[0] at offset 7\n"
            "Traceback: took over nothing\n"
        )
        (tmp_path / "router-b.log").write_text(
            f"2026-11-27 14:00:01,000 {TOOK} x.requests[1] at offset 0\n"
            f"2026-11-27 14:00:17,250 {TOOK} x.requests[0] at offset 9\n"
            f"2026-11-27 14:00:17,750 {TOOK} x.held[0] at offset 9\n"
            f"2026-11-27 14:00:18,000 {TOOK} x.requests[1] at offset 9\n"
            f"2026-11-27 14:00:29,000 {TOOK} x.requests[0] at offset 9\n"
        )
        taken = read_taken(tmp_path)
        assert [t.partition for t in taken[:3]] == ["x.requests[0]", "x.held[0]", "x.requests[1]"]
        at = taken[0].at + 10
        assert takeover_s(Kill(("router",), at, in_place=False), taken) == pytest.approx(7.75)

    def test_one_that_had_nothing_leaves_nothing(self) -> None:
        taken = [Taken(1.0, "p", "a"), Taken(2.0, "p", "b")]
        assert takeover_s(Kill(("a",), 3.0, in_place=True), taken) is None


class TestSchedule:
    def test_each_fault_comes_in_each_round_and_what_lasts_comes_last(self) -> None:
        found = list(schedule(random.Random(7), ASKED, lambda: 0))
        rounds = [{f for n, f in found if n == number and f in FAULTS} for number in (1, 2)]
        assert rounds == [set(FAULTS)] * 2
        assert [fault for _, fault in found[2 * len(FAULTS) :]] == list(LAST_FAULTS)

    def test_on_three_brokers_the_faults_are_those_of_brokers(self) -> None:
        asked = dataclasses.replace(ASKED, nodes=3)
        found = [fault for _, fault in schedule(random.Random(7), asked, lambda: 0)]
        in_rounds = 2 * len(CLUSTER_FAULTS)
        assert set(found[:in_rounds]) == set(CLUSTER_FAULTS)
        # What is lost is counted in the partitions that there were.
        assert found[in_rounds : in_rounds + 2] == [lose_tail, grow_partitions]
        assert found[in_rounds:] == list(LAST_CLUSTER_FAULTS)
        assert command(asked).endswith("--nodes 3")

    def test_what_lasts_comes_while_the_last_requests_do(self) -> None:
        asked = Asked(
            seed=7, rounds=1, rate=210, requests=10**6, only="", calm_s_max=30, table=None
        )
        published = itertools.count(0, 10_000)
        found = [f for _, f in schedule(random.Random(7), asked, lambda: next(published))]
        assert found[-1:] == list(LAST_FAULTS)
        # 97 of them come before the 970,000th.
        assert len(found) - len(LAST_FAULTS) == 97
        assert 10**6 - asked.before_last >= 120 * asked.rate

    def test_the_document_names_what_was_asked_for(self) -> None:
        asked = Asked(7, rounds=1, rate=210, requests=500, only="kill", calm_s_max=30, table=None)
        assert command(asked) == (
            "python tests/chaos/run.py --seed 7 --rate 210 --requests 500 --only kill"
            " --calm-s-max 30"
        )


async def test_a_server_that_falls_silent_takes_calls_and_answers_none() -> None:
    body = {"model": MODEL, "stream": True}
    async with MuteServer() as server, aiohttp.ClientSession() as session:

        async def call() -> int:
            async with session.post(f"{server.base_url}/chat", json=body) as answer:
                await answer.read()
                return answer.status

        assert (await call(), server.calls) == (200, 1)
        server.fall_silent()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await call()
        assert server.calls == 1
        server.speak()
        assert (await call(), server.calls) == (200, 1)


def test_the_pool_that_falls_silent_is_the_first_choice_while_it_lives(tmp_path: Path) -> None:
    server = MuteServer()
    server.port = 8000
    request = {"id": "r-0", "body": {"model": MODEL, "messages": [], "max_tokens": 8}}
    (tmp_path / "request.json").write_bytes(orjson.dumps(request | DIRECT.fields))
    # As the processes of the run get it.
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(fleet_with(server)))
    words = ["policy", "explain", str(tmp_path / "request.json"), "--json"]
    told = CliRunner().invoke(app, [*words, "--fleet", str(tmp_path / "fleet.yaml")])
    assert told.exit_code == 0, told.output
    assert orjson.loads(told.output)["candidates"][0]["pool"] == MUTE
