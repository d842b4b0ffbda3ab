"""Verification: every record under a signed root, every root in its chain, every story whole.

Roots are read first, then records in the order of their offsets, then the sums. A record is found
by its leaf hash, so it needs no mark of its own, and a changed record matches no root.
"""

from bisect import bisect_right
from collections.abc import Mapping

import msgspec

from shunter.audit.chains import Chain, PlacedRoot, check_tails, link, place_root
from shunter.audit.findings import Findings
from shunter.audit.keyring import Keyring, when
from shunter.audit.stories import Stories
from streams.evidence.projection import decode_step
from topics import BadRecordError, ChainHead, Root, decode
from topics.signing.merkle import leaf_hash

# A leaf's position as one number: its chain, and its leaf number.
_LEAF_BITS = 40


class Verifier:
    """Verifies a trail, record by record. Memory: about 300 bytes for each record."""

    def __init__(
        self,
        keyring: Keyring,
        witnessed: Mapping[str, tuple[ChainHead, str]] | None = None,
    ) -> None:
        """Take the keys, and heads from other sources than the keys topic.

        Args:
            keyring: with every key and heartbeat.
            witnessed: by chain, a head and its source.
        """
        self.findings = Findings()
        self._keyring = keyring
        self._witnessed = dict(witnessed or {})
        self._placed: list[PlacedRoot] = []
        self._chains: list[Chain] = []
        self._expected: dict[bytes, int] = {}
        self._seen: list[bytearray] = []
        self._last: dict[tuple[int, int], int] = {}
        self._stories = Stories(self.findings)

    def add_root(self, value: bytes | None, where: str, taken_at: float) -> None:
        """Add a record of the roots topic; ``taken_at`` is the broker's time, epoch seconds."""
        try:
            self._placed.append(place_root(decode(Root, value or b""), where, taken_at))
        except (BadRecordError, ValueError) as error:
            self.findings.add("unreadable", where, f"no root: {error}")

    def end_of_roots(self) -> None:
        """Check the chains; every root has been added."""
        self._chains = list(link(self._placed, self._keyring, self.findings))
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
    ) -> None:
        """Add a record of the evidence topic, in the order of its partition.

        Args:
            partition: of the topic.
            where: it stands, for people.
            key: of the record.
            value: of the record.
            is_fresh: it may be newer than the roots, so that its own may be missing.
        """
        findings, raw = self.findings, value or b""
        findings.records += 1
        place = self._expected.get(leaf_hash(raw))
        if place is None and is_fresh:
            findings.records -= 1
            findings.fresh += 1
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
        if at < last:
            told = f"{self._name(number, at)} stands behind {self._name(number, last)}"
            findings.add("reordered", where, told)
        else:
            self._last[partition, number] = at
        try:
            seen = decode_step(raw)
        except msgspec.MsgspecError as error:
            findings.add("unreadable", where, f"no evidence: {error}")
            return
        if (key or b"") != seen.request_id.encode():
            findings.add("wrong_key", where, f"its key is {key!r}, its request {seen.request_id!r}")
        self._stories.add(seen, where)

    def finish(self, kept_from: float | None = None) -> Findings:
        """Return all findings.

        Args:
            kept_from: roots before this (epoch seconds) may lack records, which are not kept.
        """
        gone = sum(
            self._missing(chain, seen, kept_from)
            for chain, seen in zip(self._chains, self._seen, strict=True)
        )
        if gone:
            self.findings.notes.append(
                f"{gone} records from before {when(kept_from or 0.0)} are not kept here any more"
            )
        witnessed = self._keyring.witnessed()
        for name, (head, told) in self._witnessed.items():
            if name not in witnessed or witnessed[name][0].sequence < head.sequence:
                witnessed[name] = (head, told)
        check_tails(self._chains, witnessed, self.findings)
        begins = all(chain.roots[0].root.statement.sequence == 0 for chain in self._chains)
        self._stories.finish(is_whole=begins and not gone)
        self.findings.notes += [
            f"{where} is set aside: {why}" for where, why in self._keyring.refused
        ]
        return self.findings

    def _missing(self, chain: Chain, seen: bytearray, kept_from: float | None) -> int:
        """Report each leaf without a record; return how many are excused by retention."""
        gone, at = 0, seen.find(0)
        while at >= 0:
            placed = chain.roots[_root_of(chain.starts, at)]
            if kept_from is not None and placed.root.statement.at <= kept_from:
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
