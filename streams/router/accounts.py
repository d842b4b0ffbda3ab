"""Accounts: the budgets of the partitions that are ours, and the way of requests to them.

One partition has all accounts of a tenant, and one process at a time has the partition. So a
request that a budget may count is passed on there, and is decided on, counted and sent in one
transaction; what it used comes there in the transaction of its end. docs/decisions/0042.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from zlib import crc32

from policies import Inputs, Situation
from policies.placement.books import NOTHING, Books, BudgetExceeded
from policies.placement.decide import Decision
from policies.placement.reservation import amounts_of, beyond_budget
from streams.engine.log import Log, LogError, Outgoing, Partition, Record
from streams.engine.stage import Effect
from topics import BadRecordError, Catalogue, InferenceRequest, Profile, decode, encode
from topics.records import headers as h
from topics.records.money import Account, BudgetState, Settlement


def home_of(tenant: str, partitions: int) -> int:
    """Return the partition that has all accounts of a tenant."""
    return crc32(tenant.encode()) % partitions


class Accounts:
    """The books of our partitions of the accounts topic."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._books: dict[int, Books] = {}
        self._heard_at: dict[int, float] = {}

    async def restore(self, partition: Partition, log: Log) -> None:
        """Read the books as the predecessor left them."""
        home = Partition(self._catalogue.budgets, partition.number)
        first, end = (await log.bounds([home]))[home]
        found: dict[bytes, Record] = {}
        async for records in log.read({home: first}, {home: end}):
            for record in records:
                found[record.key or b""] = record
        books = self._books[partition.number] = Books()
        for record in found.values():
            if record.value is not None or record.unreadable is not None:
                books.recall(_state(record))

    def forget(self, partition: Partition) -> None:
        """Drop the books of a partition that is another's."""
        self._books.pop(partition.number, None)
        self._heard_at.pop(partition.number, None)

    def states(self) -> Iterator[BudgetState]:
        """Yield the state of each account of ours."""
        for books in self._books.values():
            yield from books.states()

    def passed_on(
        self, record: Record, request: InferenceRequest, trace: dict[str, bytes]
    ) -> Effect:
        """Return a request on its way to the accounts of its tenant."""
        headers = h.client_headers(record.headers)
        # What a gateway has proven is checked where it is decided on.
        proofs = {
            name: value
            for name in (h.KEY, h.KEY_PROOF)
            if (value := h.find(record.headers, name)) is not None
        }
        origin = [record.partition.number, record.offset, record.timestamp_ms]
        added = {h.ORIGIN: encode(origin)} | proofs | trace
        outgoing = Outgoing(
            self._catalogue.accounts,
            request.id.encode(),
            record.value,
            h.replaced(headers, added),
            partition=home_of(request.tenant, self._catalogue.partitions),
        )
        return Effect(record, [outgoing], subject=request)

    def as_it_came(self, record: Record) -> Record:
        """Return a request that was passed on as it stood on ingest, which its evidence names.

        Raises:
            BadRecordError: it does not say where that was.
        """
        number, offset, timestamp_ms = h.read(record.headers, h.ORIGIN, tuple[int, int, int])
        where = Partition(self._catalogue.requests, number)
        return record._replace(partition=where, offset=offset, timestamp_ms=timestamp_ms)

    def hear(self, partition: Partition, records: Sequence[Record], now: float) -> None:
        """Hear from records what time it was at their broker, by which windows are closed.

        By the clock of a host that is set while it runs, a window would be closed that others find
        open, and would begin once more.
        """
        heard_at = self._heard_at.get(partition.number, 0.0)
        newest_at = max(record.came_at(now) for record in records)
        self._heard_at[partition.number] = max(heard_at, newest_at)

    def settle(self, record: Record) -> None:
        """Count what a request used that has ended.

        Raises:
            BadRecordError: the record is no settlement.
        """
        settlement = h.read(record.headers, h.SETTLED, Settlement)
        self._books[record.partition.number].settle(settlement)

    def reserve(
        self,
        partition: Partition,
        profile: Profile,
        decision: Decision,
        inputs: Inputs,
        here: Situation,
        output_tokens_max: int | None,
        now: float,
    ) -> tuple[Decision, Profile]:
        """Return decision and profile with what its budgets keep for it, or its rejection."""
        counted = here.policy.budgets_for(profile)
        if not counted or decision.action not in ("place", "hold"):
            return decision, profile
        amounts = amounts_of(
            profile, decision, inputs, here.options, here.policy, output_tokens_max
        )
        books = self._books[partition.number]
        # By a clock that is behind, a window could be opened again that is closed.
        at = max(now, self._heard_at[partition.number])
        found = books.reserve(counted, amounts, partition.number, at)
        if isinstance(found, BudgetExceeded):
            return beyond_budget(decision, found), profile
        return decision, replace(profile, reserved=found)

    def release(self, home: Partition | None, profile: Profile) -> None:
        """Free what is kept for a request that is set aside before its decision is on the log."""
        if home is not None and profile.reserved is not None:
            self._books[home.number].settle(Settlement(profile.reserved, NOTHING))

    def changes(self, partition: Partition) -> list[Effect]:
        """Return the records of the accounts that have changed."""
        books = self._books[partition.number]
        outgoing = [
            Outgoing(
                self._catalogue.budgets,
                _key(account),
                None if state is None else encode(state),
                partition=partition.number,
            )
            for account, state in books.take_changes(self._heard_at[partition.number])
        ]
        return [Effect(None, outgoing)] if outgoing else []


def _state(record: Record) -> BudgetState:
    try:
        record.check_readable()
        return decode(BudgetState, record.value or b"")
    except BadRecordError as error:
        # To go on without it would allow what is used already a second time.
        topic, number = record.partition
        raise LogError(
            f"the account at {topic}/{number}@{record.offset} can't be read: {error.message}. A"
            " tombstone under its key begins this window of its budget anew"
        ) from error


def is_settlement(record: Record) -> bool:
    """Return whether a record of the accounts topic is what a request used."""
    return h.find(record.headers, h.SETTLED) is not None


def _key(account: Account) -> bytes:
    return encode([account.rule, account.owner, account.window_s, account.number])
