"""The batcher: waiting requests, and the moment of their release.

The hold is a log: all state here comes from the records of ``held``, and a release writes a
tombstone for each member in the transaction that sends it. A process that takes a partition over
reads it from the beginning and knows exactly what is held.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from zlib import crc32

from policies import (
    Expelled,
    Member,
    Placer,
    Release,
    Situation,
    Target,
    Windows,
    release_beside,
    release_inputs_of,
    windows_of,
)
from streams.batcher.expulsion import given_up
from streams.batcher.partition_state import HeldInAll, HeldPartition, Judged
from streams.batcher.payload_cache import Payloads, Room
from streams.batcher.prefetch import Prefetch
from streams.cancellation.index import Cancellations, message_of
from streams.config.active_policy import DecisionContext
from streams.engine.clock import Clock
from streams.engine.log import Log, LogError, Outgoing, Partition, Record
from streams.engine.stage import Effect, ReadTo, TransactionPlan
from streams.engine.unexpected_errors import log_unexpected
from streams.evidence.records import EvidenceWriter, told
from streams.tracing.telemetry import Telemetry
from topics import Batch, Hold, Placement, Progress, ResultError
from topics.records import headers as h

# Members released in one transaction: as many as keep it well under a second.
RELEASED_MAX = 1000
# And their bytes, headers included, all in memory at once, in the client's batches too. A larger
# batch goes whole, with nothing else.
RELEASED_BYTES_MAX = 16 * 1024 * 1024


class Batcher:
    """The stage from the hold to the lanes of the pools.

    It reads on while fewer than ``held_records_max`` requests are held, over all partitions.
    ``room`` says how much of their payloads is in memory.
    """

    accumulates = True

    def __init__(
        self,
        situation: Situation,
        evidence_writer: EvidenceWriter,
        clock: Clock,
        telemetry: Telemetry,
        cancellations: Cancellations,
        *,
        held_records_max: int,
        held_payload_bytes_max: int,
    ) -> None:
        self._placer = Placer(situation)
        self._shadow: Situation | None = None
        self._evidence_writer = evidence_writer
        self._catalogue = evidence_writer.catalogue
        self._clock = clock
        self._telemetry = telemetry
        self._cancellations = cancellations
        cancellations.tell(self._cancel)
        self.held_records_max = held_records_max
        self.room = Room(held_payload_bytes_max)
        self._log: Log | None = None
        self._partitions: dict[Partition, HeldPartition] = {}
        self._in_all = HeldInAll()
        self._ahead = Prefetch(self._nothing_of, self._take, held_records_max)

    @property
    def group(self) -> str:
        """The consumer group."""
        return self._catalogue.batcher_group

    @property
    def topics(self) -> Sequence[str]:
        """The hold."""
        return (self._catalogue.held,)

    def sizes(self) -> dict[str, int]:
        """Return the number of held requests of each group, over our partitions."""
        sizes: dict[str, int] = {}
        for held in self._partitions.values():
            for group, size in held.windows.sizes().items():
                sizes[group] = sizes.get(group, 0) + size
        return sizes

    def windows(self) -> Iterator[Windows]:
        """Yield the held requests of each of our partitions, read-only."""
        return (held.windows for held in self._partitions.values())

    def take_context(self, terms: DecisionContext) -> None:
        """Adopt new terms. Only while no work is in flight."""
        self._placer.take(terms.situation)
        self._evidence_writer = terms.evidence_writer
        self._shadow = terms.shadow
        for held in chain(self._partitions.values(), self._ahead):
            held.regroup(self._situation)

    @property
    def _situation(self) -> Situation:
        return self._placer.situation

    async def read_ahead(self, log: Log) -> None:
        """Read partitions that may become ours, while the process is idle."""
        topic, partitions = self._catalogue.held, range(self._catalogue.partitions)
        await self._ahead.run(log, [Partition(topic, number) for number in partitions])

    async def restore(self, partition: Partition, progress: Progress | None, log: Log) -> ReadTo:
        """Read the partition from the lowest held offset; what is left is held."""
        held_from = 0 if progress is None else progress.held_from or 0
        held = self._ahead.claim(partition) or self._nothing_of(partition)
        if held.next_offset < held_from:
            # All requests read ahead have ended, and their tombstones would not be read.
            held.payloads.clear()
            held = self._nothing_of(partition)
        self.forget(partition)
        # Registered before it is read, so that no cancellation meanwhile is missed.
        self._partitions[partition] = held
        held.join(self._in_all)
        first, end = (await log.bounds([partition]))[partition]
        held.held_from = held_from
        start = max(first, held_from, held.next_offset)
        async for records in log.read({partition: start}, {partition: end}):
            for record in records:
                self._take(held, record)
        held.is_read(start, progress, self._situation.arrivals)
        self._log = log
        return ReadTo(held.next_offset, held.leader_epoch)

    def forget(self, partition: Partition) -> None:
        """Drop the state of a partition; the log has it all."""
        held = self._partitions.pop(partition, None)
        if held is not None:
            held.leave()

    def wants(self, partition: Partition) -> bool:
        """Return whether there is room; beyond it requests stay unread in the log."""
        return self._in_all.count < self.held_records_max

    def idle_s(self) -> float:
        """Return the time until a window is due, or 0 if a request has to end."""
        if any(held.cancelled or held.outside for held in self._partitions.values()):
            return 0.0
        due_ats = (held.windows.next_due_at() for held in self._partitions.values())
        return min(due_ats, default=float("inf")) - self._clock.now()

    async def work(self, partition: Partition, records: Sequence[Record]) -> TransactionPlan | None:
        """Add new requests, and release due ones."""
        self._ahead.end()
        held = self._partitions[partition]
        for record in records:
            self._take(held, record)
        now = self._clock.now()
        work = TransactionPlan(Progress(held.next_offset, held_from=held.lowest(now)))
        for record, error in held.unreadable.values():
            work.effects.append(self._unreadable(record, error, now))
        if held.cancelled or held.outside or held.windows.next_due_at() <= now:
            work.effects += await self._due(partition, held, now)
        if not work.effects and not held.wants_commit(now):
            return None
        return work

    def done(self, partition: Partition, work: TransactionPlan) -> None:
        """Remove released requests from the hold."""
        held = self._partitions[partition]
        for effect in work.effects:
            if isinstance(effect.subject, Release | Expelled):
                for member in effect.subject.members:
                    held.drop(member.profile.id)
        held.unreadable.clear()
        held.committed_offset = work.progress.next_offset
        held.committed_at = self._clock.now()

    def refused(self, effect: Effect, record: Outgoing, error: Exception) -> list[Effect]:
        """Dead-letter the member that the log refuses; the others go without it."""
        release = effect.subject
        if not isinstance(release, Release):
            raise LogError(f"{record.topic} refused a record: {error}") from error
        held = self._holder(release.members[0])
        now = self._clock.now()
        culprits = [m for m in release.members if m.profile.id.encode() == record.key]
        rest = tuple(m for m in release.members if m not in culprits)
        effects = []
        for member in culprits or release.members:
            source = self._source(held, member)
            letter = self._evidence_writer.dead_letter(
                source, error, stage="produce", reason="refused", now=now
            )
            end = self._give_up(held, Expelled(member, "refused"), now)
            letter.records += end.records
            letter.subject = end.subject
            effects.append(letter)
        if culprits and rest:
            again = replace(release, members=rest)
            effects.append(self._release(held, again, Judged(), now))
        return effects

    def _nothing_of(self, partition: Partition) -> HeldPartition:
        windows = windows_of(self._situation.policy)
        return HeldPartition(partition, windows, Payloads(partition, self.room))

    def _take(self, held: HeldPartition, record: Record) -> None:
        held.take(record, self._situation, self._cancellations)

    def _cancel(self, request_id: str) -> None:
        """Mark a request for its end, if it is held here."""
        for held in chain(self._partitions.values(), self._ahead):
            if held.windows.find(request_id) is not None:
                held.cancelled.add(request_id)

    async def _due(self, partition: Partition, held: HeldPartition, now: float) -> list[Effect]:
        self._situation.view.prune(now)
        ends: list[tuple[Release | Expelled, Judged]] = []
        released = released_bytes = 0

        def target(members: Sequence[Member]) -> Target | None:
            try:
                return self._placer.target(members, now)
            except Exception as error:  # noqa: BLE001 - no record ends a process
                # They wait on, as if no pool were alive, and end at their deadline at last.
                log_unexpected(error, f"no pool can be found for a batch of {held.partition}")
                return None

        ending = held.cancelled | held.outside
        expelled = (
            Expelled(member, "cancelled" if request_id in held.cancelled else "outside_bound")
            for request_id in sorted(ending)
            if (member := held.windows.find(request_id)) is not None
        )
        for end in chain(expelled, held.windows.due(now, target, without=ending)):
            released_bytes += sum(held.payloads.size(m.profile.id) for m in end.members)
            if ends and released_bytes > RELEASED_BYTES_MAX:
                # Before the view counts it: it stays due.
                break
            judged = Judged()
            if isinstance(end, Release):
                # Before the view counts it.
                other = self._shadow
                shadow = None if other is None else release_beside(end.members, other, now)
                judged = Judged(release_inputs_of(end, self._situation), shadow)
                self._placer.count_released(end, now)
            ends.append((end, judged))
            released += len(end.members)
            if released >= RELEASED_MAX:
                break
        if self._log is None:
            raise LogError("work before restore")
        wanted = [m for end, _ in ends for m in end.members]
        await held.payloads.load(self._log, [(m.profile.id, m.offset) for m in wanted])
        effects: list[Effect] = []
        for end, judged in ends:
            effects += self._end(held, end, judged, now)
        return effects

    def _end(
        self, held: HeldPartition, end: Release | Expelled, judged: Judged, now: float
    ) -> list[Effect]:
        """Release a batch, or end a request; if that fails, set its members aside."""
        try:
            if isinstance(end, Release):
                return [self._release(held, end, judged, now)]
            return [self._give_up(held, end, now)]
        except Exception as error:  # noqa: BLE001 - no record ends a process
            letters = []
            for member in end.members:
                source = self._source(held, member)
                letter = self._evidence_writer.set_aside(source, error, now, is_accepted=True)
                letter.records.append(self._tombstone(source))
                letter.subject = Expelled(member, "refused")
                letters.append(letter)
            return letters

    def _release(self, held: HeldPartition, release: Release, judged: Judged, now: float) -> Effect:
        target, first = release.target, release.members[0]
        # A request leads one batch of its partition at most, so its offset names the batch.
        batch_id = f"{held.partition.number}-{first.offset}"
        topic = self._catalogue.pool_lane(target.option.pool, target.path)
        records: list[Outgoing] = []
        sources = [self._source(held, member) for member in release.members]
        is_batch = target.path == "batch"
        whole = self._telemetry.batch(sources) if is_batch else {}
        for index, (member, source) in enumerate(zip(release.members, sources, strict=True)):
            batch = Batch(batch_id, index, len(sources)) if is_batch else None
            # A batch is decided on as one; its first member carries the basis of the decision.
            known = judged if index == 0 else replace(judged, inputs=None)
            trace = whole | self._telemetry.sent(source) | h.held_promise(source.headers)
            records += self._release_member(
                release, member, source, batch, topic, trace, known, now
            )
        return Effect(None, records, subject=release)

    def _release_member(
        self,
        release: Release,
        member: Member,
        source: Record,
        batch: Batch | None,
        topic: str,
        trace: dict[str, bytes],
        judged: Judged,
        now: float,
    ) -> list[Outgoing]:
        """Return the request on its lane, its tombstone, and the evidence."""
        profile, target = member.profile, release.target
        placement = Placement(
            pool=target.option.pool,
            device=target.option.device,
            model_variant=target.option.variant,
            precision=target.option.precision,
            region=target.option.region,
            path=target.path,
            batch_id=None if batch is None else batch.id,
            attempt=profile.attempt,
            fallbacks=profile.fallbacks,
        )
        is_first = member is release.members[0]
        promised = target.promise(profile, now)
        added = h.encoded(profile=profile, placement=placement, promised=promised, batch=batch)
        added |= {h.RELEASED_AT: repr(now).encode()} | trace | h.carried(source.headers)
        lane = profile.ingest_partition if batch is None else crc32(batch.id.encode())
        request = Outgoing(
            topic,
            profile.id.encode(),
            source.value,
            h.replaced(h.client_headers(source.headers), added),
            partition=lane % self._catalogue.partitions,
        )
        evidence = self._evidence_writer.step(
            source,
            profile,
            "released",
            now,
            view_version=self._situation.view.version,
            candidates=target.candidates if is_first else (),
            profile=None if judged.inputs is None else told(profile),
            inputs=judged.inputs,
            decided_with=None if is_first else release.members[0].profile.id,
            placement=placement,
            assumed=target.option.is_assumed,
            promised=promised,
            footprint=target.footprint_of(profile),
            batch=batch,
            hold=Hold(member.group, release.reason, now - member.held_at, release.slack_s),
            reason=release.reason,
            shadow=judged.shadow,
        )
        return [request, self._tombstone(source), evidence]

    def _give_up(self, held: HeldPartition, end: Expelled, now: float) -> Effect:
        profile, source = end.member.profile, self._source(held, end.member)
        found = given_up(end, self._placer, now)
        status, message = found.status, found.message
        is_wanted = end.reason != "cancelled"
        to_client = message if is_wanted else message_of(self._cancellations.find(profile.id))
        tried = {fallback.pool: fallback.reason for fallback in profile.fallbacks}
        status = "failed" if tried and status == "rejected" else status
        error = ResultError(found.reason, to_client, (found.why | tried) or None)
        held_s = now - end.member.held_at
        hold = Hold(end.member.group, found.reason, held_s, profile.deadline - now)
        evidence = self._evidence_writer.ended(
            source, profile, status, now, hold=hold, reason=found.reason, message=message
        )
        result = self._evidence_writer.no_answer(source, profile, status, error, now)
        return Effect(None, [result, self._tombstone(source), *evidence], subject=end)

    def _source(self, held: HeldPartition, member: Member) -> Record:
        return self._telemetry.entered(held.payloads.record(member.profile.id))

    def _unreadable(self, record: Record, error: Exception, now: float) -> Effect:
        record = self._telemetry.entered(record)
        effect = self._evidence_writer.set_aside(record, error, now, is_accepted=True)
        if record.key is not None:
            effect.records.append(self._tombstone(record))
        return effect

    def _tombstone(self, record: Record) -> Outgoing:
        return Outgoing(
            self._catalogue.held, record.key or b"", None, partition=record.partition.number
        )

    def _holder(self, member: Member) -> HeldPartition:
        """Return where a member is held, which its group may not tell after a policy change."""
        return next(
            held
            for held in self._partitions.values()
            if any(held_member is member for held_member in held.windows.members())
        )
