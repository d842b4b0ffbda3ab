"""Time budget of a routed request: processor time of each step, without a Kafka.

    python -m benchmarks.budget

The bare loop measures what the Kafka client takes to read, send and commit (`python -m benchmarks
--only routed`); only the part that puts records into batches is included here.
"""

import argparse
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence

from aiokafka.partitioner import murmur2
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from benchmarks.workload import Yard, make_options, records_of, report_all, request_value
from policies import decide, decided_tags, inputs_of, tag
from streams.engine.log import Outgoing, Record
from streams.kafka.writer import BATCH_BYTES_MAX
from topics import parse_request
from topics.records import headers as h
from topics.records.evidence_bytes import evidence_bytes

REQUESTS, POLL, REPEATS = 500, 100, 9
LARGE_BYTES = (102_400, 409_600)


class Budget:
    """The steps of a fleet and of requests like these, each with what the one before it gives."""

    def __init__(self, *, is_mixed: bool, size: int = 1024, requests: int = REQUESTS) -> None:
        self.yard = yard = Yard(make_options(is_mixed=is_mixed))
        values = [request_value(number, size) for number in range(requests)]
        self.records = records_of(values, yard.catalogue.requests)
        self.requests = [self.parse(record) for record in self.records]
        self.tagged = [self.tag(each) for each in self.requests]
        self.profiles = [each.profile for each in self.tagged]
        here = yard.situation
        known = [inputs_of(each, here, yard.now) for each in self.profiles]
        self.decisions = [
            decide(each, inputs, here.options, here.policy, yard.now)
            for each, inputs in zip(self.profiles, known, strict=True)
        ]
        self.effects = [yard.decide(record) for record in self.records]
        self.told = [effect.records[1].payload for effect in self.effects]
        report_all(yard.situation.view, yard.options)

    def parse(self, record: Record) -> object:
        """Decode and validate."""
        return parse_request(record.value, bytes_max=1 << 20)

    def tag(self, request: object) -> object:
        """Tag."""
        yard = self.yard
        return tag(request, yard.policy, received_at=yard.now, now=yard.now, ingest_partition=0)

    def steps(self) -> Iterator[tuple[str, float]]:
        """Yield each step and the microseconds that a request takes in it."""
        yard, now = self.yard, self.yard.now
        digests, situation = yard.evidence_writer.digests, yard.situation
        decided = list(zip(self.profiles, self.decisions, strict=True))
        yield "decode and validate", best_us(self.parse, self.records)
        yield "tags", best_us(self.tag, self.requests)
        yield "digests of the request", best_us(digests.of_request, self.requests)
        known = [(each, inputs_of(each, situation, now)) for each in self.profiles]
        yield (
            "decide",
            best_us(lambda each: decide(*each, situation.options, situation.policy, now), known),
        )
        yield (
            "what the decision is made on, and its tags",
            best_us(lambda each: inputs_of(each, situation, now), self.profiles)
            + best_us(lambda each: decided_tags(*each, yard.options, now), decided),
        )
        yield (
            "headers",
            best_us(lambda each: h.encoded(profile=each[0], promised=each[1].promised), decided),
        )
        yield "evidence as canonical JSON", best_us(evidence_bytes, self.told)
        polls = [self.effects[at : at + POLL] for at in range(0, len(self.effects), POLL)]
        each_poll = min(POLL, len(self.effects))
        sealed = best_us(lambda poll: yard.signer.seal("chain", None, poll), polls)
        yield f"hash and sign, {each_poll} in a transaction", sealed / each_poll
        yield "batches for Kafka", best_us(_batched, [e.records for e in self.effects])

    def all_us(self) -> float:
        """Return the time of a request from its bytes to its signed records, in one go."""
        yard, records = self.yard, self.records
        polls = [records[at : at + POLL] for at in range(0, len(records), POLL)]
        return best_us(yard.route, polls) * len(polls) / len(records)


def _batched(records: Sequence[Outgoing]) -> None:
    for record in records:
        builder = DefaultRecordBatchBuilder(2, 0, 1, -1, -1, 0, BATCH_BYTES_MAX)
        murmur2(record.key)
        builder.append(0, None, record.key, record.value, record.headers)


def best_us(work: Callable[[object], object], inputs: Sequence[object]) -> float:
    """Return the processor time for one of the inputs, of the best of some runs."""
    best = math.inf
    for _ in range(REPEATS):
        began = time.process_time()
        for each in inputs:
            work(each)
        best = min(best, time.process_time() - began)
    return best / len(inputs) * 1e6


def main() -> None:
    """Print the budget as a table."""
    argparse.ArgumentParser(prog="python -m benchmarks.budget", description=__doc__).parse_args()
    few, many = Budget(is_mixed=True), Budget(is_mixed=False)
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    print("| step | us, 10 candidates | us, 30 candidates |\n| --- | ---: | ---: |")
    for (step, few_us), (_, many_us) in zip(few.steps(), many.steps(), strict=True):
        print(f"| {step} | {few_us:.1f} | {many_us:.1f} |", flush=True)
    print(f"| all but the batches, in one go | {few.all_us():.1f} | {many.all_us():.1f} |")
    for size in LARGE_BYTES:
        large = Budget(is_mixed=True, size=size, requests=20)
        print(f"\n{size // 1024} KB: {large.all_us():.0f} us a request;", end=" ")
        print(", ".join(f"{step} {us:.0f}" for step, us in large.steps()))


if __name__ == "__main__":
    main()
