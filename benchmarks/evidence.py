"""Cost of signed evidence: to write, to verify, to look up.

    python benchmarks/evidence.py write
    python benchmarks/evidence.py verify --records 1000000
    python benchmarks/evidence.py lookup --records 10000000

Prints a table of Markdown. Uses one core, and a temporary directory for the archive.
"""

import argparse
import itertools
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import orjson
import pyarrow as pa

from policies import (
    Arrivals,
    Situation,
    compile_options,
    decide,
    decided_tags,
    idle_view,
    inputs_of,
    tag,
)
from policies.placement.inputs import Inputs
from shunter.archive import Archive
from shunter.archive.rows import table_of
from shunter.audit.archive_trail import find_request, verify_archive
from streams.config.declarations import load_fleet, load_policy
from streams.engine.log import Outgoing, Partition, Record
from streams.engine.signer import Signer
from streams.engine.stage import Effect
from streams.engine.text_digests import Digests
from topics import (
    Catalogue,
    Envelope,
    Evidence,
    InferenceRequest,
    KeyEntry,
    Placement,
    Settings,
    Source,
    Usage,
    encode,
    parse_request,
)
from topics.records.evidence_bytes import evidence_bytes
from topics.signing.keys import load_signing_key

NOW = 1_800_000_000.0
TRANSACTION_RECORDS = 1000
FILE_RECORDS = 200_000
REPEATS = 5
LOOKUPS = 9
CHAIN = "inference.router-inference.requests-0"

SETTINGS = Settings(topic_prefix="inference")
CATALOGUE = Catalogue(SETTINGS)


class _Clock:
    def now(self) -> float:
        return NOW


def samples() -> tuple[Evidence, Evidence]:
    """Return a decision with all its candidates, and the execution of the request."""
    options, policy = compile_options(load_fleet(None)), load_policy(None)
    situation = Situation(options, policy, idle_view(options, NOW), Arrivals(0.5))
    body = {"model": "llama-3.1-8b", "messages": [{"role": "user", "content": "Which track?"}]}
    value = orjson.dumps({"id": "request-0000000", "task": "summarization", "body": body})
    request = parse_request(value, bytes_max=10_000)
    tagged = tag(request, policy, received_at=NOW, now=NOW, ingest_partition=0)
    found = inputs_of(tagged.profile, situation, NOW)
    inputs = Inputs(found.loads, found.arrivals_per_s, found.credit)
    decision = decide(tagged.profile, inputs, options, policy, NOW)
    placed = Evidence(
        request_id=request.id,
        step="held",
        at=NOW,
        writer="router/router-0",
        source=Source(CATALOGUE.requests, 0, 1_000_000),
        tenant="default",
        task="summarization",
        model=request.model,
        policy_version=policy.version,
        fleet_version=options.version,
        view_version=17,
        tags=tagged.tags | decided_tags(tagged.profile, decision, options, NOW),
        profile=tagged.profile,
        inputs=inputs,
        candidates=tuple(decision.candidates),
        promised=decision.promised,
        reason=decision.reason,
    )
    best = options.by_pool["silicon-us"][0]
    executed = Evidence(
        request_id=request.id,
        step="executed",
        at=NOW + 3.25,
        writer="worker/silicon-us/silicon-us-0",
        source=Source("inference.pool.silicon-us.batch", 0, 1_000_000),
        tenant="default",
        task="summarization",
        model=request.model,
        policy_version=policy.version,
        fleet_version=options.version,
        placement=Placement(
            best.pool, best.device, best.variant, best.precision, best.region, "direct"
        ),
        promised=Envelope(0.0000328, 0.25, 3.5, 0.0021, 0.99),
        got=Envelope(0.0000301, 0.22, 3.25, 0.0019),
        usage=Usage(1200, 300),
    )
    return placed, executed


def new_signer() -> Signer:
    """Return a signer with a key of its own."""
    clock = _Clock()
    digests = Digests(CATALOGUE, None, os.urandom)
    return Signer(CATALOGUE, load_signing_key(None), "router/router-0", clock, digests)


def asked() -> InferenceRequest:
    """Return the request of the decision, with what clients set beside the body."""
    body = {"model": "llama-3.1-8b", "messages": [{"role": "user", "content": "Which track?"}]}
    fields = {
        "id": "request-0000000",
        "task": "summarization",
        "tenant": "default",
        "deadline": NOW + 600.0,
        "constraints": {"regions": ["eu-west"], "max_cost_usd": 0.01},
        "body": body,
    }
    return parse_request(orjson.dumps(fields), bytes_max=10_000)


def digests() -> list[tuple[str, str]]:
    """Measure the digests of a request, and what they add to its decision."""
    request, made = asked(), Digests(CATALOGUE, None, os.urandom)
    placed, _ = samples()
    found = made.of_request(request)
    body = None if found is None else replace(found, whole=None)
    sizes = [len(evidence_bytes(replace(placed, request_digest=each))) for each in (body, found)]
    body_us = per_record_us(partial(made.digest, "default", request.body), 1, 5000)
    whole_us = per_record_us(partial(made.of_request, request), 1, 5000)
    return [
        ("decision with a digest of the body, bytes", f"{sizes[0]:,}"),
        ("decision with that of the whole request besides, bytes", f"{sizes[1]:,}"),
        ("digest of a body", us(body_us)),
        ("digests of a body and of the whole request of 7 parts", us(whole_us)),
    ]


def per_record_us(work: Callable[[], object], records: int, times: int) -> float:
    """Return the time per record of the best of several runs, since the machine is shared."""
    runs = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        for _ in range(times):
            work()
        runs.append((time.perf_counter() - began) / times / records * 1e6)
    return min(runs)


def write() -> list[tuple[str, str]]:
    """Measure the cost of writing a record, by its size and that of its transaction."""
    rows = []
    signer = new_signer()
    for name, sample in zip(("decision", "execution"), samples(), strict=True):
        raw = evidence_bytes(sample)
        plain = per_record_us(partial(orjson.dumps, sample, list), 1, 5000)
        ordered = per_record_us(partial(evidence_bytes, sample), 1, 5000)
        rows += [
            (f"{name}, bytes", f"{len(raw):,}"),
            (f"{name}: written by orjson, fields as declared", us(plain)),
            (f"{name}: written as canonical JSON", us(ordered)),
        ]
        for count in (1, 10, 20, 100, TRANSACTION_RECORDS):
            records = [Outgoing(CATALOGUE.evidence, b"k", raw + b"%d" % n) for n in range(count)]
            seal = partial(signer.seal, CHAIN, None, [Effect(None, records)])
            took_us = per_record_us(seal, count, 20_000 // count)
            rows.append((f"{name}: hashed and signed, {count} in a transaction", us(took_us)))
    took_us = per_record_us(partial(evidence_bytes, small_execution()), 1, 5000)
    rows.append(("execution below 0.00001 dollars: written as canonical JSON", us(took_us)))
    return rows + digests()


def small_execution() -> Evidence:
    """Return an execution whose costs have digits that ECMAScript writes otherwise."""
    _, executed = samples()
    return replace(
        executed,
        promised=Envelope(0.00000328, 0.25, 3.5, 0.0021, 0.99),
        got=Envelope(0.00000301, 0.22, 3.25, 0.0019),
    )


def us(value: float) -> str:
    """Return microseconds for the table."""
    return f"{value:.1f} us"


def verify(records: int, directory: Path) -> list[tuple[str, str]]:
    """Measure verification of an archive of this many records: half decisions, half ends."""
    archive, signer = Archive(str(directory)), new_signer()
    home = Partition(CATALOGUE.evidence, 0)
    entry = KeyEntry(published=signer.publish())
    keys = [_record(home, 0, (entry.name or "").encode(), encode(entry))]
    archive.write("keys", 0, (0, 1), NOW, table_of("keys", keys))
    placed, executed = samples()
    head, roots, pending, offset = None, [], [], 0
    for number in itertools.count():
        if offset >= records:
            break
        batch = []
        for n in range(TRANSACTION_RECORDS // 2):
            name = f"request-{number * TRANSACTION_RECORDS + n:010d}"
            source = replace(placed.source, offset=offset)
            for sample in (replace(placed, source=source), executed):
                value = evidence_bytes(replace(sample, request_id=name))
                batch.append(Outgoing(CATALOGUE.evidence, name.encode(), value))
        sealed, head = signer.seal(CHAIN, head, [Effect(None, batch)])
        roots.append(_record(home, len(roots), CHAIN.encode(), sealed[0].value or b""))
        for out in batch:
            pending.append(_record(home, offset, out.key or b"", out.value or b""))
            offset += 1
        if len(pending) >= FILE_RECORDS or offset >= records:
            span = (pending[0].offset, offset)
            archive.write("evidence", 0, span, NOW, table_of("evidence", pending))
            pending = []
    archive.write("roots", 0, (0, len(roots)), NOW, table_of("roots", roots))
    began, cpu = time.perf_counter(), time.process_time()
    findings = verify_archive(archive)
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    if not findings.is_good or findings.records != offset:
        raise SystemExit(f"not verified: {findings.problems[:3]}")
    return [
        ("records", f"{offset:,}"),
        ("size of the archive", f"{_size_mb(directory):,.0f} MB"),
        ("verified in", f"{took_s:.1f} s, {cpu_s:.1f} s of one core"),
    ]


def lookup(records: int, directory: Path) -> list[tuple[str, str]]:
    """Measure finding one request among this many records, two each, in archive files."""
    archive = Archive(str(directory))
    placed, executed = samples()
    schema = table_of("evidence", [_evidence_record(executed)]).schema
    rng = random.Random(1)
    for first in range(0, records, FILE_RECORDS):
        names = [f"request-{rng.getrandbits(48):012x}" for _ in range(FILE_RECORDS // 2)]
        rows = table_of("evidence", [_evidence_record(placed), _evidence_record(executed)])
        table = pa.concat_tables([rows] * (FILE_RECORDS // 2))
        each = [name for name in names for _ in range(2)]
        table = table.set_column(0, "request_id", pa.array(each))
        table = table.set_column(
            schema.get_field_index("offset"),
            "offset",
            pa.array(range(first, first + FILE_RECORDS), pa.int64()),
        )
        archive.write(
            "evidence", 0, (first, first + FILE_RECORDS), NOW + first, table.combine_chunks()
        )
    wanted = names[:LOOKUPS]
    times = []
    for name in wanted:
        began = time.perf_counter()
        found = find_request(archive, name)
        times.append(time.perf_counter() - began)
        if len(found) != 2:
            raise SystemExit(f"{name}: {len(found)} records")
    return [
        ("records, files", f"{records:,}, {records // FILE_RECORDS}"),
        ("size of the archive", f"{_size_mb(directory):,.0f} MB"),
        (
            "one request found in, median and worst",
            f"{statistics.median(times):.2f} s, {max(times):.2f} s",
        ),
    ]


def _record(home: Partition, offset: int, key: bytes, value: bytes) -> Record:
    return Record(home, offset, key, value, [], int(NOW * 1000))


def _evidence_record(sample: Evidence) -> Record:
    home = Partition(CATALOGUE.evidence, 0)
    return _record(home, 0, sample.request_id.encode(), evidence_bytes(sample))


def _size_mb(directory: Path) -> float:
    return sum(path.stat().st_size for path in directory.rglob("*.parquet")) / 1e6


def main() -> None:
    """Run one of the three, and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["write", "verify", "lookup"])
    parser.add_argument("--records", type=int, default=1_000_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shunter-evidence-") as name:
        work = {"verify": verify, "lookup": lookup}.get(asked.what)
        rows = write() if work is None else work(asked.records, Path(name))
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}\n")
    print("| measured | found |\n| --- | --: |")
    for label, value in rows:
        print(f"| {label} | {value} |")


if __name__ == "__main__":
    main()
