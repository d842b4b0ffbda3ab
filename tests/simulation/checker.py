"""Invariants after a run, checked from the log alone (docs/architecture.md)."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import orjson

from shunter.audit import Keyring, Verifier
from shunter.audit.replay import replay_steps
from simulation.aftermath import Aftermath, key_of, place_of, source_of
from simulation.budgets import check_budgets
from simulation.quotes import check_quotes
from simulation.requests import BOUND, HURRIED
from streams.engine.clock import TOLERANCE_S
from streams.engine.log import Record
from topics import Evidence, KeyEntry, Placement, Progress, decode
from topics.records import headers as h

if TYPE_CHECKING:
    from simulation.world import World

# The steps that may be the evidence of a result.
STEPS = {
    "completed": {"executed"},
    "failed": {"failed", "dead_lettered"},
    "expired": {"expired"},
    "rejected": {"rejected"},
    "cancelled": {"cancelled"},
}


# A timer of floating-point seconds since 1970 is as exact as this, and more.
TIMER_S = 1e-4
MS_S = 1e-3
# The region of each pool, and the one that each policy of the world binds the tenant to.
REGION_OF = {"premium-eu": "eu-west", "premium-us": "us-east", "boards-us": "us-east"}
BOUND_TO = ("eu-west", "us-east")
# From a decision until its evidence is written: a transaction whose answer is lost is made again.
WRITTEN_S_MAX = 30.0
# Ends before anybody looks whether a request was cancelled.
MORE_THAN_ALLOWED = {"budget", "rate_limited", "over_share"}
KNOWN_ENDS = {"cancelled", "expired", *MORE_THAN_ALLOWED}


def check(world: "World") -> Iterator[str]:
    """Yield what is wrong."""
    after = Aftermath(world)
    for invariant in (
        _torn, _results, _deadlines, _clocks, _constraints, _answers, _evidence,
        _duplicates, _cancellations, _dead_letters, _progress, _trail, _rates, _bounds,
        check_budgets, check_quotes, _replays,
    ):  # fmt: skip
        yield from invariant(after)
    yield from (f"{key_of(r)} is still held" for r in held(world))


def _torn(after: Aftermath) -> Iterator[str]:
    """A transaction ends on each partition as its coordinator has decided."""
    for transaction in {t: None for _, t in after.world.cluster.history if t is not None}:
        for partition, marker in transaction.markers.items():
            if marker != transaction.state:
                yield (
                    f"{transaction.transactional_id}: its transaction was {transaction.state},"
                    f" but {marker} on {partition}"
                )


def _results(after: Aftermath) -> Iterator[str]:
    counts = Counter(name for name, _ in after.results)
    for name, records in after.published.items():
        accepted = sum(
            place_of(record) not in after.duplicates or after.is_lost(record) for record in records
        )
        # Of two that are accepted and held at once, the second takes the place of the first.
        if not (name not in after.unread) <= counts[name] <= accepted:
            yield f"{name}: {counts[name]} results, accepted {accepted} times"
    for name in counts.keys() - after.expected.keys():
        yield f"{name}: a result of what was no request"


def _deadlines(after: Aftermath) -> Iterator[str]:
    """Nothing expires early, begins late or runs on, by the clock of whoever decides."""
    # One that was published on two partitions may have run at two.
    ran_at: dict[str, set[str]] = {}
    for e, _ in after.evidence:
        if e["step"] == "executed":
            ran_at.setdefault(e["request_id"], set()).add(e["writer"])
    for name, result in after.results:
        records = after.published.get(name)
        if records is None:
            continue
        first, last = (
            record.timestamp_ms / 1000 + after.expected[name].deadline_s
            for record in (records[0], records[-1])
        )
        if result["status"] == "completed" and result["timing"]["started_at"] >= last:
            yield f"{name}: began after its deadline"
        # Who stood still could not stop it, and a clock that was moved tells nothing of how long.
        is_steady = not ran_at.get(name, set()) & after.world.unsteady
        is_told = result["status"] == "completed" and is_steady
        if is_told and result["timing"]["finished_at"] > last + TIMER_S:
            yield f"{name}: finished after its deadline"
        if result["status"] == "expired" and result["timing"]["finished_at"] < first:
            yield f"{name}: expired before its deadline"
        if (result["status"] == "completed") != (result["error"] is None):
            yield f"{name}: {result['status']}, and its error is {result.get('error')}"


def _clocks(after: Aftermath) -> Iterator[str]:
    """Evidence has the time of the brokers, whatever that of the host; but see ``unsteady``."""
    for record in after.records(after.catalogue.evidence):
        evidence = orjson.loads(record.value or b"")
        late_s = record.timestamp_ms / 1000 - evidence["at"]
        is_right = -TOLERANCE_S - MS_S <= late_s <= WRITTEN_S_MAX
        if not is_right and evidence["writer"] not in after.world.unsteady:
            yield f"{evidence['writer']}: {evidence['step']} {late_s:.1f} s before it was written"


def _constraints(after: Aftermath) -> Iterator[str]:
    for pool in after.world.options.by_pool:
        for topic in after.catalogue.pool_topics(pool):
            for record, transaction in after.topics[topic.name]:
                expected = after.expected.get(key_of(record))
                if transaction is None or expected is None:
                    continue
                placed = h.read(record.headers, h.PLACEMENT, Placement)
                if pool not in expected.pools or placed.pool != pool:
                    yield f"{expected.id}: sent to {pool}, allowed {expected.pools}, {placed}"
                if record.value != expected.value:
                    yield f"{expected.id}: its payload was changed on the way"


def _answers(after: Aftermath) -> Iterator[str]:
    for name, result in after.results:
        expected = after.expected.get(name)
        if expected is not None and result["status"] == "completed":
            if result["placement"]["pool"] not in expected.pools:
                yield f"{name}: ran in {result['placement']['pool']}"
            if result["response"]["body"] != {"id": name}:
                yield f"{name}: has the answer of another"


def _evidence(after: Aftermath) -> Iterator[str]:
    """Each effect has its evidence, and what else belongs to it, in its transaction."""
    c = after.catalogue
    steps: dict[tuple[int, str], set[str]] = defaultdict(set)
    for evidence, transaction in after.evidence:
        steps[id(transaction), evidence["request_id"]].add(evidence["step"])
    tombstones = {(id(t), key_of(r)) for r, t in after.topics[c.held] if r.value is None}
    for topic, written in after.topics.items():
        for record, transaction in written:
            if (
                topic in (c.requests, c.cancellations, c.policies, c.quotes)
                or place_of(record) in after.world.bad
            ):
                continue
            at = id(transaction), _subject(record)
            if transaction is None:
                yield f"{record.partition} {record.offset}: written outside any transaction"
            wanted = _steps_of(after, record)
            if wanted and not wanted & steps[at]:
                yield f"{at[1]} on {topic}: no evidence of {wanted} in its transaction"
            if wanted == {"released"} and at not in tombstones:
                yield f"{at[1]}: released without a tombstone in the same transaction"


def _subject(record: Record) -> str:
    """Return what evidence calls the request of a record: where it stood if it has no key."""
    return key_of(record) or "{}/{}/{}".format(*source_of(record))


def _steps_of(after: Aftermath, record: Record) -> set[str]:
    """Return the steps of which one must be the evidence of a record; none where it has none."""
    c, topic = after.catalogue, record.partition.topic
    if topic.startswith(f"{c.prefix}.pool."):
        return {"placed" if h.find(record.headers, h.RELEASED_AT) is None else "released"}
    if topic == c.results:
        return STEPS[orjson.loads(record.value or b"")["status"]]
    if topic == c.held:
        return set() if record.value is None else {"held"}
    if topic == c.quote_answers:
        return {"quoted"}
    return {c.reroutes: {"fell_back"}, c.dead_letters: {"dead_lettered"}}.get(topic, set())


def _duplicates(after: Aftermath) -> Iterator[str]:
    found = after.evidenced("duplicate")
    for place in sorted((after.duplicates | found.keys()) - after.doubtful):
        if found[place] != (place in after.duplicates):
            what = "a duplicate" if place in after.duplicates else "no duplicate"
            yield f"{place}: {what}, and {found[place]} times evidenced as one"


def _cancellations(after: Aftermath) -> Iterator[str]:
    """Each is evidenced once, and nothing else is cancelled."""
    found = after.evidenced("cancel_requested")
    cancelled = set()
    for record in after.records(after.catalogue.cancellations):
        place = place_of(record)
        if place not in after.world.bad:
            cancelled.add(key_of(record))
            if found[place] != 1:
                yield f"cancellation of {key_of(record)}: {found[place]} times evidenced"
    for name, result in after.results:
        if result["status"] == "cancelled" and name not in cancelled:
            yield f"{name}: cancelled, which nobody wanted"
        expected = after.expected.get(name)
        # What expires, or is more than its tenant may send, has come to nobody who reads them.
        is_known = expected is not None and expected.is_known_cancelled
        if is_known and _how(result) not in KNOWN_ENDS:
            yield f"{name}: {result['status']}, though it had been cancelled long before"


def _how(result: dict[str, Any]) -> str:
    code = (result["error"] or {}).get("code")
    return code if code in MORE_THAN_ALLOWED else str(result["status"])


def _dead_letters(after: Aftermath) -> Iterator[str]:
    letters = after.records(after.catalogue.dead_letters)
    counts = Counter(map(source_of, letters))
    for place in sorted(after.world.bad):
        if counts[place] != 1:
            yield f"bad record {place}: {counts[place]} dead letters"
    for record in letters:
        expected = after.expected.get(key_of(record))
        if source_of(record) not in after.world.bad and not (expected and expected.is_refused):
            yield f"{key_of(record)} is a dead letter, and was neither bad nor refused"


def _progress(after: Aftermath) -> Iterator[str]:
    newest: dict[str, int] = {}
    recovered = Counter(
        place[:2] for place, times in after.evidenced("recovered").items() for _ in range(times)
    )
    for record in after.records(after.catalogue.progress):
        key, offset = key_of(record), orjson.loads(record.value or b"")["next_offset"]
        _, topic, number = key.rsplit("/", 2)
        if offset < newest.get(key, 0) and recovered[topic, int(number)]:
            recovered[topic, int(number)] -= 1
        elif offset < newest.get(key, 0):
            yield f"{key}: progress went back from {newest[key]} to {offset}"
        newest[key] = offset


def _trail(after: Aftermath) -> Iterator[str]:
    """Verify the trail as an auditor does, but that nothing of it may be open or set aside."""
    keyring = Keyring()
    for published in after.world.keys:
        keyring.add(KeyEntry(published=published), published.statement.writer)
    c, heads = after.catalogue, {}
    for record in after.records(c.progress):
        head = decode(Progress, record.value or b"").head
        if head is not None:
            heads[key_of(record).replace("/", "-")] = (head, "the progress")
    verifier = Verifier(keyring, heads)
    for record in after.records(c.evidence_roots):
        verifier.add_root(record.value, str(record.partition), record.timestamp_ms / 1000)
    verifier.end_of_roots()
    for record in after.records(c.evidence):
        number = record.partition.number
        verifier.add(number, f"evidence {number}@{record.offset}", record.key, record.value)
    findings = verifier.finish()
    yield from (f"trail: {p.kind} {p.where}: {p.message}" for p in findings.problems)
    yield from (f"trail: {note}" for note in findings.notes)
    if findings.open != len(after.gone):
        yield f"trail: {findings.open} requests without an end, and {len(after.gone)} are gone"


def _rates(after: Aftermath) -> Iterator[str]:
    """Only a tenant that has a rate is ever held to it."""
    for evidence, _ in after.evidence:
        if evidence["reason"] == "rate_limited" and evidence["tenant"] != HURRIED:
            yield f"{evidence['request_id']}: of {evidence['tenant']}, which has no rate"


def _bounds(after: Aftermath) -> Iterator[str]:
    """What sends a request of the bound tenant does so within the policy that it names."""

    for record in after.records(after.catalogue.evidence):
        step = decode(Evidence, record.value or b"")
        if step.tenant != BOUND or step.step not in {"placed", "released"}:
            continue
        region = REGION_OF[step.placement.pool] if step.placement else None
        allowed = BOUND_TO[list(after.world.policies).index(step.policy_version or "")]
        if region != allowed:
            yield f"{step.request_id}: {step.step} to {region}, bound to {allowed}"
        if step.profile is not None and step.profile.bound_by != (f"tenants.{BOUND}",):
            yield f"{step.request_id}: {step.step} says it is bound by {step.profile.bound_by}"


def _replays(after: Aftermath) -> Iterator[str]:
    """Each decision comes out as it is recorded, by the policy and the inputs that it names."""
    world = after.world
    for record in after.records(after.catalogue.evidence):
        step = decode(Evidence, record.value or b"")
        if step.inputs is None:
            continue
        policy = world.policies.get(step.policy_version or "")
        if policy is None:
            yield f"{step.request_id}: {step.step} by policy {step.policy_version}, which is none"
            continue
        (found,) = replay_steps([step], lambda *_, policy=policy: (world.options, policy))
        yield from (f"{step.request_id}: {step.step} again: {d}" for d in found.differences)


def held(world: "World") -> list[Record]:
    """Return what is held by the log's own account."""
    newest = {r.key: r for r in world.cluster.records(world.catalogue.held)}
    return [record for record in newest.values() if record.value is not None]
