"""Progress that can't be read: what a takeover makes of it, and `shunter topics recover`."""

import pytest
from client_commands import installation, producing, shunter, write
from memory_log import MemoryLog
from notary_cases import CHAIN, roots, router
from stream_cases import Yard, drain

from streams.engine.log import Outgoing, Partition
from streams.engine.progress import read_progress
from streams.engine.transactor import Transactor
from streams.kafka.log import KafkaLog
from topics import Catalogue, Progress, Root, RootStatement, encode, progress_key
from topics.records import headers as h
from topics.signing.signed_root import head_of

GROUP, TOPIC = "yard.router", "yard.requests"


def spoil(yard: Yard, value: bytes, *headers: tuple[str, bytes]) -> None:
    key = progress_key(GROUP, TOPIC, 0)
    yard.cluster.publish(Outgoing(yard.catalogue.progress, key, value, list(headers), partition=0))


async def serve(yard: Yard, name: str) -> Transactor:
    yard.cluster.members.clear()
    transactor = await yard.run(router(yard), MemoryLog(yard.cluster, name))
    await drain(transactor)
    return transactor


async def test_where_all_is_done_the_group_offset_counts_and_the_chain_goes_on() -> None:
    yard = Yard()
    for name in ("a", "b"):
        yard.publish(id=name)
    await serve(yard, "first")
    spoil(yard, b'{"next_offset":"many"}')
    second = await serve(yard, "second")
    yard.publish(id="c")
    await drain(second)
    await serve(yard, "third")
    placed = [e.request_id for e in yard.evidence() if e.step == "placed"]
    assert sorted(placed) == ["a", "b", "c"]
    statements = [root.statement for root in roots(yard) if root.statement.chain == CHAIN]
    assert [s.sequence for s in statements] == list(range(len(statements)))
    assert len(statements) > 1


@pytest.mark.parametrize(
    ("value", "headers", "told"),
    [
        (b'{"next_offset":"many"}', (), "next_offset"),
        (encode(Progress(1)), ((h.CRITICAL, b"finished_ranges"),), "finished_ranges"),
    ],
)
async def test_where_something_may_be_done_already_nobody_guesses(
    value: bytes,
    headers: tuple[tuple[str, bytes], ...],
    told: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    yard = Yard()
    yard.publish(id="a")
    await serve(yard, "first")
    spoil(yard, value, *headers)
    yard.publish(id="b")
    yard.publish(1, id="elsewhere")
    await serve(yard, "second")
    message = caplog.text
    last = yard.cluster.records(yard.catalogue.progress, 0)[-1]
    assert f"record {last.offset} of yard.progress[0], can't be read" in message
    assert told in message
    assert f"`shunter topics recover {GROUP} {TOPIC} 0 --at OFFSET`" in message
    # Nothing of that partition is taken, and all of the others is.
    placed = [e.request_id for e in yard.evidence() if e.step == "placed"]
    assert sorted(placed) == ["a", "elsewhere"]


async def test_progress_of_a_group_without_an_offset_is_not_guessed_either(
    caplog: pytest.LogCaptureFixture,
) -> None:
    yard = Yard()
    yard.publish(id="a")
    spoil(yard, b"{")
    await serve(yard, "first")
    assert "offset (none) on may be done already" in caplog.text
    assert not yard.evidence("placed")


@pytest.mark.kafka
class TestRecover:
    async def test_it_writes_progress_that_can_be_read_with_the_head_of_the_chain(
        self, kafka: str, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = await installation(kafka, prefix, monkeypatch)
        names = Catalogue(settings)
        group, topic = names.router_group, names.requests
        chain = f"{group}-{topic}-1"
        statement = RootStatement(chain, 6, "d", 1, "t", 5.0, "w", "k")
        await write(settings, names.evidence_roots, chain, encode(Root(statement, "s", "")))
        async with producing(settings) as producer:
            for n in range(3):
                await producer.send_and_wait(topic, str(n).encode(), partition=1)
        words = ("topics", "recover", group, topic, 1, "--yes", "--at", 2)
        assert "nothing to recover" in str((await shunter(*words)).exception)
        key = progress_key(group, topic, 1)
        async with producing(settings) as producer:
            await producer.send_and_wait(names.progress, b"?", key=key, partition=1)
        beyond = await shunter(*words[:-1], 4)
        assert "has offsets 0 to 3" in str(beyond.exception)
        outcome = await shunter(*words)
        assert outcome.exit_code == 0, outcome.output
        here = Partition(topic, 1)
        stored = await read_progress(KafkaLog(settings), names.progress, group, [here])
        progress = stored.known[here]
        assert (progress.next_offset, progress.finished) == (2, ())
        assert progress.head is not None
        # The root of the evidence that it was recovered follows the last that there was.
        assert progress.head.sequence == head_of(statement).sequence + 1
        assert "nothing to recover" in str((await shunter(*words)).exception)
        elsewhere = await shunter("topics", "recover", group, topic, 9, "--yes", "--at", 0)
        assert "has no partition 9" in str(elsewhere.exception)
