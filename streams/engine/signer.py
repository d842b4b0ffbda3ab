"""The signer: signs the evidence of each transaction that a process commits.

One root per transaction covers its evidence, in the order written. The chain of a transactional
producer continues from the head in its progress, whichever process wrote that. The head of an
aborted transaction is discarded, so that an abort leaves no gap.
"""

import contextlib
from collections.abc import Sequence

from streams.engine.clock import Clock
from streams.engine.log import Log, Outgoing, Partition
from streams.engine.newest_value import newest
from streams.engine.stage import Effect
from streams.engine.text_digests import Digests
from topics import (
    BadRecordError,
    Catalogue,
    ChainHead,
    Heads,
    HeadsStatement,
    Introduction,
    PublishedKey,
    Root,
    decode,
    encode,
)
from topics.signing.introductions import introduce
from topics.signing.keys import SigningKey
from topics.signing.merkle import leaf_hash
from topics.signing.signed_root import head_of, make_root, sign


class Signer:
    """Signs on behalf of one process. ``writer`` is its name in the evidence."""

    def __init__(
        self, catalogue: Catalogue, key: SigningKey, writer: str, clock: Clock, digests: Digests
    ) -> None:
        self._catalogue = catalogue
        self._evidence = catalogue.evidence
        self._roots = catalogue.evidence_roots
        self._key = key
        self._key_id = key.id
        self._writer = writer
        self._clock = clock
        self.digests = digests
        self._valid_from = 0.0
        self._heads: dict[str, ChainHead] = {}

    def seal(
        self, chain: str, head: ChainHead | None, effects: Sequence[Effect]
    ) -> tuple[list[Outgoing], ChainHead | None]:
        """Return a transaction's records beside its effects, and its head once committed.

        Args:
            chain: the id of the transactional producer.
            head: the last root that this producer id has committed.
            effects: all of the transaction.
        """
        leaves = [
            leaf_hash(record.value or b"")
            for effect in effects
            for record in effect.records
            if record.topic == self._evidence
        ]
        if not leaves:
            return [], head
        # The machine's clock may be set back; nothing was signed before the key was valid.
        at = max(self._clock.now(), self._valid_from)
        root, new = make_root(
            self._key.private, self._key_id, self._writer, chain, head, leaves, at
        )
        return [
            Outgoing(self._roots, chain.encode(), encode(root)),
            *self.digests.unwritten(),
        ], new

    def took_over(self, chain: str, head: ChainHead | None) -> None:
        """Take over a chain with this last root."""
        self.committed(chain, head, [])

    async def last_head(self, chain: str, log: Log) -> ChainHead | None:
        """Return the last root of a chain on the roots topic, None if there is none."""
        return await last_head(self._catalogue, chain, log)

    def committed(self, chain: str, head: ChainHead | None, records: list[Outgoing]) -> None:
        """Note that the transaction of these records is visible."""
        self.digests.written(records)
        if head is not None:
            self._heads[chain] = head

    def publish(self, valid_s: float | None = None) -> PublishedKey:
        """Return the public key, valid for signing for ``valid_s`` if given."""
        published = self._key.publish(self._writer, self._clock.now(), valid_s)
        self._valid_from = published.statement.valid_from
        return published

    def introduce(self, introducer: SigningKey, valid_s: float | None = None) -> Introduction:
        """Return an introduction of this key, valid from its publication on."""
        valid_from = self._valid_from
        until = None if valid_s is None else valid_from + valid_s
        return introduce(introducer, self._key_id, self._writer, valid_from, until)

    def heads(self) -> Heads:
        """Return the last root of each chain that this process has written to, signed."""
        at = max(self._clock.now(), self._valid_from)
        heads = dict(sorted(self._heads.items()))
        statement = HeadsStatement(self._writer, self._key_id, at, heads)
        return Heads(statement, sign(self._key.private, "heads", statement))


async def last_head(catalogue: Catalogue, chain: str, log: Log) -> ChainHead | None:
    """Return the last root of a chain on the roots topic, None if there is none.

    Progress has it too, and sooner; this is for unreadable progress.
    """
    partitions = [Partition(catalogue.evidence_roots, n) for n in range(catalogue.partitions)]
    bounds = await log.bounds(partitions)
    key, heads = chain.encode(), []
    # A chain has one partition, but adding partitions to the topic has moved it.
    for partition in partitions:
        for record in (await newest(log, {key: partition}, bounds)).values():
            with contextlib.suppress(BadRecordError):
                heads.append(head_of(decode(Root, record.value or b"").statement))
    return max(heads, key=lambda head: head.sequence, default=None)
