"""Verification: every record under a signed root, every root in its chain, every story whole.

Roots are read first, then records in the order of their offsets, then the sums. A record is found
by its leaf hash, so it needs no mark of its own, and a changed record matches no root.
"""

import math
from bisect import bisect_right
from collections.abc import Collection, Mapping

import msgspec

from shunter.audit.chains import Chain, PlacedRoot, Witnessed, check_tails, link
from shunter.audit.findings import REMADE_UNCHECKED, TAIL_UNCHECKED, Findings
from shunter.audit.keyring import Keyring
from shunter.audit.stories import Stories
from shunter.audit.terms import FRESH_MAX, Terms
from streams.evidence.projection import AskedStep, decode_step
from topics import BadRecordError, ChainHead, Root, decode, encode
from topics.iso_time import iso_time
from topics.signing.merkle import leaf_hash
from topics.signing.signed_root import statement_digest

# A leaf's position as one number: its chain, and its leaf number.
_LEAF_BITS = 40


class Verifier:
    """Verifies a trail, record by record. Memory: about 300 bytes for each record."""

    def __init__(
        self,
        keyring: Keyring,
        witnessed: Witnessed | None = None,
        told: Collection[tuple[str, ChainHead, str]] = (),
        terms: Terms | None = None,
    ) -> None:
        """Take what an auditor brings along.

        Args:
            keyring: with every key and heartbeat.
            witnessed: by chain, a head that the auditor has kept, and its source.
            told: heads that others tell, and their sources.
            terms: what may be gone; nothing, if None.
        """
        self.findings = Findings()
        self.stories = Stories(self.findings)
        self._keyring = keyring
        self._witnessed = dict(witnessed or {})
        self._told = list(told)
        self._terms = terms or Terms()
        self._placed: list[PlacedRoot] = []
        self._chains: list[Chain] = []
        self._expected: dict[bytes, int] = {}
        self._seen: list[bytearray] = []
        self._last: dict[tuple[int, int], int] = {}
        self._first: dict[tuple[int, int], int] = {}

    def add_root(
        self,
        value: bytes | None,
        where: str,
        taken_at: float,
        *,
        key: bytes | None = None,
        partition: int = 0,
    ) -> None:
        """Add a record of the roots topic, in the order of its partition.

        Args:
            value: of the record.
            where: it stands, for people.
            taken_at: the broker's time of it, epoch seconds.
            key: of the record; not checked if None.
            partition: of the topic.
        """
        try:
            root = decode(Root, value or b"")
            digest = statement_digest(root.statement)
        except (BadRecordError, ValueError) as error:
            self.findings.add("unreadable", where, f"no root: {error}")
            return
        if encode(root) != value:
            # What is not signed, such as a member that nobody knows, could say anything.
            self.findings.add("unreadable", where, "it is not written as its signer writes a root")
            return
        if key is not None and key != root.statement.chain.encode():
            told = f"its key is {key!r}, its chain {root.statement.chain!r}"
            self.findings.add("wrong_key", where, told)
        order = len(self._placed)
        self._placed.append(PlacedRoot(root, where, taken_at, digest, partition, order))

    def end_of_roots(self) -> None:
        """Check the chains; every root has been added."""
        given = (self._keyring, self._witnessed, self._terms, self.findings)
        self._chains = list(link(self._placed, *given))
        self._placed = []
        for number, chain in enumerate(self._chains):
            self._seen.append(bytearray(len(chain.leaves)))
            for at, leaf in enumerate(chain.leaves):
                self._expected[leaf] = number << _LEAF_BITS | at
            chain.leaves = []

    def add(
        self,
        partition: int,
        where: str,
        key: bytes | None,
        value: bytes | None,
        *,
        is_fresh: bool = False,
        step: AskedStep | None = None,
    ) -> None:
        """Add a record of the evidence topic, in the order of its partition.

        Args:
            partition: of the topic.
            where: it stands, for people.
            key: of the record.
            value: of the record.
            is_fresh: it came after the auditor had begun to read, so that its root may not have
                been read.
            step: the same, if it was read already.
        """
        findings, raw = self.findings, value or b""
        findings.records += 1
        place = self._expected.get(leaf_hash(raw))
        if place is None and is_fresh and findings.fresh < FRESH_MAX:
            findings.records -= 1
            findings.add_fresh(where)
            return
        if place is None:
            findings.add("altered", where, "no signed root is over it: it was altered, or forged")
            return
        number, at = place >> _LEAF_BITS, place & (1 << _LEAF_BITS) - 1
        if self._seen[number][at]:
            findings.add("replayed", where, f"{self._name(number, at)} stands before it already")
            return
        self._seen[number][at] = 1
        last = self._last.get((partition, number), -1)
        if last < 0:
            self._first[partition, number] = at
        if at < last:
            told = f"{self._name(number, at)} stands behind {self._name(number, last)}"
            findings.add("reordered", where, told)
        else:
            self._last[partition, number] = at
        try:
            seen = decode_step(raw) if step is None else step
        except msgspec.MsgspecError as error:
            findings.add("unreadable", where, f"no evidence: {error}")
            return
        if (key or b"") != seen.request_id.encode():
            findings.add("wrong_key", where, f"its key is {key!r}, its request {seen.request_id!r}")
        self.stories.add(seen, where)

    def finish(self, starts: Mapping[int, int] | None = None) -> Findings:
        """Return all findings.

        Args:
            starts: by partition of evidence, the offset from which on it is kept.
        """
        findings, terms = self.findings, self._terms
        gone = self._missing({p: first for p, first in (starts or {}).items() if first})
        if gone:
            told = iso_time(terms.evidence_since)
            findings.notes.append(f"{gone} records from before {told} are not kept here any more")
        self._keyring.check_endorsements()
        kept = [(name, head, told) for name, (head, told) in self._witnessed.items()]
        heads = [*kept, *self._told, *self._keyring.witnessed()]
        check_tails(self._chains, heads, terms, findings)
        begins = all(chain.roots[0].root.statement.sequence == 0 for chain in self._chains)
        # What a heartbeat was told before is here: heads are read before roots, and archived so.
        newest = max((c.roots[-1].earliest for c in self._chains), default=-math.inf)
        newest = max(newest, self._keyring.heard_at)
        self.stories.finish(
            is_whole=begins and not gone,
            now=newest if terms.now is None else max(newest, terms.now),
        )
        for where, why in self._keyring.refused:
            findings.add("false_entry", where, why)
        findings.notes += [f"{where} is set aside: {why}" for where, why in self._keyring.ignored]
        self._say_what_was_checked(gone)
        return findings

    def _say_what_was_checked(self, gone: int) -> None:
        findings, keyring = self.findings, self._keyring
        but = f", but for {gone:,} that are too old" if gone else ""
        findings.checked += [
            (
                f"{findings.records:,} records against {findings.roots:,} signed roots in"
                f" {len(self._chains)} chains: each as it was signed, in its order, none left out"
                f" between the first and the last root{but}"
            ),
            (
                f"{findings.requests:,} requests: one end each, of all that are due, and no"
                " constraint broken"
            ),
        ]
        if keyring.installations:
            ids = ", ".join(sorted(keyring.installations))
            findings.checked.append(f"each signing key is introduced by {ids}")
            findings.unchecked.append("whether a revocation is withheld from this trail (--keys)")
        elif keyring.trusted is not None:
            findings.checked.append("each signing key is one of your file, or endorsed by one")
        else:
            findings.unchecked.append(
                "whose the keys are: they are those that the trail names, and who could write all"
                " of it could have made it anew (--trust)"
            )
        if self._witnessed:
            findings.checked.append(f"the heads that you kept of {len(self._witnessed)} chains")
        else:
            findings.unchecked.append(TAIL_UNCHECKED)
        findings.unchecked.append(REMADE_UNCHECKED)
        if findings.fresh:
            findings.unchecked.append(
                f"{findings.fresh:,} records that no root is over, which came during this check or"
                f" are let pass by --fresh; the next check must have their roots:"
                f" {findings.told_fresh()}"
            )
        findings.unchecked.append("whether what was signed is true")

    def _missing(self, starts: Mapping[int, int]) -> int:
        """Report each leaf without a record; return how many are excused by retention.

        Retention takes the old from the front of a partition: what is excused is old by the
        broker's time and stood before what is kept of a partition that has lost its front, and
        there are no more than offsets before these.
        """
        gone, gone_max = 0, sum(starts.values())
        for number, (chain, seen) in enumerate(zip(self._chains, self._seen, strict=True)):
            # The first that is kept on a partition that has lost what stood before.
            fronts = [self._first.get((partition, number), math.inf) for partition in starts]
            front, at = max(fronts, default=-1), seen.find(0)
            while at >= 0:
                placed = chain.roots[_root_of(chain.starts, at)]
                is_old = placed.latest <= self._terms.evidence_since
                if is_old and at < front and gone < gone_max:
                    gone += 1
                else:
                    told = f"{self._name_of(chain, at)} is missing: it was deleted, or altered"
                    self.findings.add("missing", placed.where, told)
                at = seen.find(0, at + 1)
        return gone

    def _name(self, number: int, at: int) -> str:
        return self._name_of(self._chains[number], at)

    @staticmethod
    def _name_of(chain: Chain, at: int) -> str:
        root = _root_of(chain.starts, at)
        placed = chain.roots[root]
        count = placed.root.statement.count
        return f"record {at - chain.starts[root] + 1} of {count} under {placed.name}"


def _root_of(starts: list[int], at: int) -> int:
    """Return the number of a leaf's root."""
    return bisect_right(starts, at) - 1
