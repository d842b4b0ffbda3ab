"""Judges of the quality watch: extensions that compare two answers."""

import logging
from dataclasses import replace
from typing import Any

import pytest
from stream_cases import START, Yard, make_profile
from worker_cases import placed

from streams.engine.log import Partition, Record
from topics import QualityCheck, Response, Usage
from topics.records import headers as h
from workers.backends.base import Outcome
from workers.stage import second_runs
from workers.stage.routed_request import RoutedRequest
from workers.stage.second_runs import SecondRuns

CHECK = QualityCheck(
    *("chat", "yard-8b-fp8", "judge:mine", 0.2, 600.0, 3600.0),
    pool="boards-us",
    variant="yard-8b-int8",
    of="r1",
    asked="reference",
)


def answered(text: str) -> Outcome:
    body = {"choices": [{"message": {"content": text}}]}
    return Outcome(Response(200, body), Usage(1, 1), START, START, START, 0.5)


def second(yard: Yard, answer: bytes) -> RoutedRequest:
    profile = replace(make_profile(yard.policy), quality=CHECK)
    sent = placed(yard, "r1", profile=profile)
    headers = [*sent.headers, (h.ANSWER, answer)]
    return RoutedRequest.of(Record(Partition("lane", 0), 0, sent.key, sent.value, headers, 0))


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        (lambda _body, judged, reference: float(judged["texts"] != reference["texts"]) / 2, 0.5),
        (lambda *_: 1.5, None),
        (lambda *_: "secret", None),
        (lambda *_: {}["secret"], None),
        (None, None),
    ],
)
async def test_a_judge_says_a_number_or_nothing_is_compared(
    judge: Any, expected: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    yard = Yard()
    runs = SecondRuns(yard.evidence_writer(), yard.telemetry, {"mine": judge} if judge else {})
    option = yard.options.of("premium-eu", "yard-8b-fp8")
    with caplog.at_level(logging.WARNING):
        routed = second(yard, b'{"texts":["a"],"calls":[[]]}')
        told = await runs.compared(routed, answered("b"), option)
    assert told is not None
    assert told.difference == expected
    assert (told.pool, told.variant, told.of) == ("boards-us", "yard-8b-int8", "r1")
    assert "secret" not in caplog.text


async def test_an_answer_that_is_unreadable_is_not_compared() -> None:
    yard = Yard()
    runs = SecondRuns(yard.evidence_writer(), yard.telemetry)
    option = yard.options.of("premium-eu", "yard-8b-fp8")
    for answer in (b"{", b"[]", b"null"):
        told = await runs.compared(second(yard, answer), answered("b"), option)
        assert told is not None
        assert told.difference is None


async def test_an_answer_too_long_for_a_header_asks_for_no_second_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    yard = Yard()
    runs = SecondRuns(yard.evidence_writer(), yard.telemetry)
    check = replace(CHECK, reference="yard-8b-int8", of=None, asked=None, pool=None, variant=None)
    routed = second(yard, b"null")
    routed = replace(routed, profile=replace(routed.profile, quality=check))
    assert len(runs.asked_for(routed, answered("b"))) == 1
    monkeypatch.setattr(second_runs, "EXCERPT_BYTES_MAX", 10)
    assert not runs.asked_for(routed, answered("b"))


async def test_a_comparison_of_labels_tells_the_group_of_the_reference_s_answer() -> None:
    yard = Yard()
    runs = SecondRuns(yard.evidence_writer(), yard.telemetry)
    option = yard.options.of("premium-eu", "yard-8b-fp8")

    async def group(compare: str, first: str, text: str, asked: str = "reference") -> int | None:
        routed = second(yard, b'{"texts":["%s"],"calls":[[]]}' % first.encode())
        check = replace(CHECK, compare=compare, asked=asked)
        routed = replace(routed, profile=replace(routed.profile, quality=check))
        told = await runs.compared(routed, answered(text), option)
        assert told is not None
        return told.answer_group

    good = await group("labels", "bad", "good")
    assert good is not None
    # By the reference's answer, whichever of the two came first.
    assert good == await group("labels", "good", "Good.")
    assert good == await group("labels", "good", "bad", asked="judged")
    assert good != await group("labels", "good", "bad")
    assert await group("tokens", "good", "good") is None
