"""Quotes of files: questions small enough, and one menu of all answers."""

import asyncio
import io
from pathlib import Path

import orjson
import pytest
from client_commands import installation, producing
from rich.console import Console
from stream_cases import MODEL, request
from typer.testing import CliRunner

from shunter.cli import app
from shunter.client.quotes import MenuLine, Wish, as_sent, ask, menu_of, questions
from shunter.commands.quote import _table
from shunter.console import UserError
from topics import Catalogue, InferenceRequest, QuoteAnswer, QuoteOffer, ResultError
from topics.iso_time import iso_time
from topics.records import headers as h
from topics.records.quote import MEMBERS_MAX, parse_question

BYTES_MAX = 10**7


def parsed(count: int, tenant: str = "a") -> list[InferenceRequest]:
    return [
        InferenceRequest.model_validate(request(id=f"{tenant}{n}", model=MODEL, tenant=tenant))
        for n in range(count)
    ]


def offer(chance: float, nano: int, name: str, within_s: float = 60.0) -> QuoteOffer:
    return QuoteOffer(
        deadline=1000.0 + within_s,
        tier="flex",
        cost_usd=nano / 1e9,
        nano_usd=nano,
        chance=chance,
        valid_until=900.0 + nano,
        within_s=within_s,
        quote_ids={name: f"token of {name} at {chance}"},
        quotes={},
    )


def test_each_question_is_of_one_tenant_and_no_larger_than_a_router_takes() -> None:
    requests = parsed(MEMBERS_MAX + 1) + parsed(2, "b")
    asked = dict(questions(requests, Wish(windows=["1h"], tiers=["flex"]), "q", BYTES_MAX))
    found = [parse_question(value, bytes_max=10**7) for value in asked.values()]
    assert [each.id for each in found] == list(asked) == ["q-0", "q-1", "q-2"]
    assert [len(each.requests) for each in found] == [MEMBERS_MAX, 1, 2]
    assert [each.tiers for each in found] == [["flex"]] * 3
    assert {r.id for each in found for r in each.requests} == {r.id for r in requests}


def test_several_questions_need_deadlines_in_common() -> None:
    with pytest.raises(UserError, match="--by"):
        list(questions(parsed(1) + parsed(1, "b"), Wish(), "q", BYTES_MAX))
    assert len(list(questions(parsed(3), Wish(), "q", BYTES_MAX))) == 1


def test_what_is_sent_has_the_terms_of_the_quote_alone() -> None:
    (own,) = parsed(1)
    own = own.model_copy(update={"deadline": 5.0, "service_tier": "flex", "created_at": 1.0})
    sent = as_sent(own, "token")
    assert {"deadline", "service_tier", "created_at"} & sent.keys() == set()
    assert (sent["quote_id"], sent["id"]) == ("token", "a0")
    assert orjson.loads(orjson.dumps(sent)) == sent


def test_the_menu_of_a_file_is_the_sum_of_its_answers() -> None:
    first = QuoteAnswer("q-0", 1.0, (offer(0.95, 10, "x"), offer(0.99, 30, "x")))
    second = QuoteAnswer("q-1", 1.0, (offer(0.97, 5, "y"),))
    sure, likely = menu_of([first, second])
    assert (sure.nano_usd, sure.chance, sure.valid_until) == (35, 0.97, 905.0)
    assert (likely.nano_usd, likely.chance) == (15, 0.95)
    assert sure.quote_ids == {"x": "token of x at 0.99", "y": "token of y at 0.97"}
    assert sure.cost_usd == pytest.approx(35e-9)


def test_a_deadline_that_not_all_can_keep_is_no_line() -> None:
    first = QuoteAnswer("q-0", 1.0, (offer(0.99, 10, "x"), offer(0.99, 9, "x", 600.0)))
    second = QuoteAnswer("q-1", 1.0, (offer(0.99, 5, "y", 600.0),))
    (line,) = menu_of([first, second])
    assert line.within_s == 600.0
    with pytest.raises(UserError, match="all of the requests"):
        menu_of([first, QuoteAnswer("q-1", 1.0, (offer(0.9, 5, "y", 9.0),))])


def test_a_refusal_is_told_by_its_code() -> None:
    refused = QuoteAnswer("q-0", 1.0, error=ResultError("quotes_off", "no secret"))
    with pytest.raises(UserError, match=r"quotes_off.*no secret"):
        menu_of([refused])


def test_a_menu_is_whole_in_80_columns() -> None:
    file = io.StringIO()
    line = MenuLine("priority", 1.8e9, 86400.0, nano_usd=12_345_678_900, valid_until=1.8e9)
    Console(file=file, width=80).print(_table([line]))
    text = file.getvalue()
    assert "12.345679" in text
    assert "86,400 s after acceptance" in text
    assert iso_time(1.8e9) in text


def test_a_file_of_taken_quotes_that_cannot_be_written_is_told_before_they_are_asked(
    tmp_path: Path,
) -> None:
    asked, taken = tmp_path / "asked.jsonl", tmp_path / "gone" / "taken.jsonl"
    asked.write_bytes(orjson.dumps(request(model=MODEL)))
    words = ["quote", str(asked), "--bootstrap-servers", "127.0.0.1:9", "--take", "1"]
    told = CliRunner().invoke(app, [*words, "--output", str(taken)]).exception
    assert isinstance(told, UserError)
    assert str(told) == f"{taken}: can't be written: No such file or directory"


def test_each_question_is_as_short_as_a_router_takes() -> None:
    """Longer ones become dead letters, which a client would wait for in vain."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "word " * 2000}]}
    requests = [
        InferenceRequest.model_validate(request(id=f"r{n}", model=MODEL, body=body))
        for n in range(9)
    ]
    asked = dict(questions(requests, Wish(windows=["1h"]), "q", 40_000))
    found = [parse_question(value, bytes_max=40_000) for value in asked.values()]
    assert [r.id for each in found for r in each.requests] == [r.id for r in requests]
    assert 3 <= len(found) < len(requests)
    with pytest.raises(UserError, match=r"this can.t be asked: .*limit"):
        list(questions(requests, Wish(windows=["1h"]), "q", 5_000))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--by", "1000000d"], "windows.0: Value error, must be at most 366d"),
        (["--by", "9999-12-31"], "deadlines.0: Input should be less than or equal to 4102444800"),
        (["--by", "0.00001s"], "windows.0"),
        (["--tier", "bogus"], "tiers.0"),
        ([each for n in range(9) for each in ("--by", f"{n + 1}h")], "at most 8 items"),
        (["--by", "1h", "--by", "2h", "--by", "3h", *["--tier", "auto"] * 3], "9 offers"),
    ],
)
def test_what_no_router_could_read_is_told_before_it_is_asked(
    tmp_path: Path, words: list[str], told: str
) -> None:
    """It would become a dead letter, and there would be no answer to wait for."""
    file = tmp_path / "requests.jsonl"
    file.write_bytes(orjson.dumps(request(id="a", model=MODEL)))
    given = ["quote", str(file), *words, "--bootstrap-servers", "127.0.0.1:1"]
    outcome = CliRunner().invoke(app, given)
    assert isinstance(outcome.exception, UserError), outcome.output
    assert str(outcome.exception).startswith("this can't be asked: ")
    assert told in str(outcome.exception)


def test_short_windows_are_told_apart() -> None:
    lines = [MenuLine("auto", 1000.0, within_s) for within_s in (0.284, 0.224, 59.5, 90.4)]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(_table(lines))
    text = capture.get()
    for told in ("0.28 s", "0.22 s", "59.50 s", "90 s"):
        assert f"{told} after acceptance" in text


@pytest.mark.kafka
async def test_a_question_that_a_router_sets_aside_is_not_waited_for(
    kafka: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a router that takes less than the client's settings say."""
    settings = await installation(kafka, prefix, monkeypatch)
    catalogue = Catalogue(settings)

    async def set_aside() -> None:
        await asyncio.sleep(1)
        async with producing(settings) as producer:
            headers = [(h.REASON, b"too_large")]
            await producer.send(catalogue.dead_letters, b"{}", key=b"q-0", headers=headers)

    aside = asyncio.create_task(set_aside())
    with pytest.raises(UserError, match=r"could not read the question \(too_large\)"):
        await ask(settings, {"q-0": b"{}"}, 60.0)
    await aside
