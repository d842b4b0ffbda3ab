"""Results held against the digests and ends that the evidence has of them."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from shunter.audit.findings import Findings
from streams.engine.log import Partition, Record
from streams.evidence.projection import AskedStep
from topics import BACKGROUND_TASK, BadRecordError, Result, decode
from topics.records.evidence import ENDS
from topics.signing.salts import text_digest


class _End(NamedTuple):
    status: str
    at: float
    salt: str | None
    hmac: str | None
    is_told: bool
    """Whether the result has the answer: of a second run nobody gets it."""


class Results:
    """Compares each result with the ends of its request. Memory: some 200 bytes for each."""

    def __init__(
        self,
        salts: Callable[[str], bytes | None],
        bounds: Mapping[Partition, tuple[int, int]],
        since: float = -math.inf,
    ) -> None:
        """Take what the digests are made with.

        Args:
            salts: returns the key of the digests made with a salt, None if that is gone.
            bounds: of the results topic, before any evidence was read; what comes later may have
                evidence that was not read.
            since: results of ends up to then, epoch seconds, may be gone.
        """
        self._salts = salts
        self._since = since
        self._bounds = bounds
        self._ends: dict[str, list[_End]] = {}
        self._seen: Counter[str] = Counter()
        self._equal = self._gone = self._fresh = self._without = 0
        self._differing: list[tuple[str, str]] = []

    def ended(self, seen: AskedStep) -> None:
        """Note a step that ends a request."""
        digest = seen.response_digest
        salt, hmac = (None, None) if digest is None else (digest.salt, digest.hmac)
        end = _End(ENDS[seen.step], seen.at, salt, hmac, seen.task != BACKGROUND_TASK)
        self._ends.setdefault(seen.request_id, []).append(end)

    def add(self, record: Record, where: str, findings: Findings) -> None:
        """Compare a result."""
        try:
            result = decode(Result, record.value or b"")
        except BadRecordError as error:
            findings.add("false_result", where, f"no result: {error.message}")
            return
        ends = [e for e in self._ends.get(result.id, ()) if e.status == result.status]
        told = f"the result of {result.id!r}"
        if not ends:
            if record.offset >= self._bounds.get(record.partition, (0, 0))[1]:
                self._fresh += 1
                return
            said = f"{told}, {result.status}, has no such end in the evidence"
            findings.add("false_result", where, said)
            return
        self._seen[result.id] += 1
        if self._seen[result.id] > len(self._ends[result.id]):
            said = f"{told} stands there more often than the request has ended"
            findings.add("false_result", where, said)
            return
        if (record.key or b"") != result.id.encode():
            findings.add("false_result", where, f"{told} stands under the key {record.key!r}")
        if result.response is None:
            if all(end.hmac is not None and end.is_told for end in ends):
                findings.add("false_result", where, f"{told} has no answer, its evidence has")
            self._without += 1
        else:
            self._compare(ends, result.response.body, where, told, findings)

    def finish(self, findings: Findings) -> None:
        """Say what was compared; ``add`` has been called with every result."""
        if self._differing and not self._equal:
            # One wrong secret looks like this, and everything altered too.
            findings.add(
                "false_result",
                "the results topic",
                f"none of {len(self._differing)} answers is that of its digest: set"
                " SHUNTER_EVIDENCE_SECRET to that of the installation, or all of them were altered"
                " (--no-results leaves them out)",
            )
        else:
            for where, told in self._differing:
                findings.add("false_result", where, told)
        for request_id, ends in self._ends.items():
            if self._seen[request_id] < len(ends) and all(self._is_due(end) for end in ends):
                told = f"it has ended, {ends[-1].status}, and its result is not there any more"
                findings.add("false_result", request_id, told)
        findings.checked.append(
            f"{self._equal:,} answers on the results topic against their digests, and the status of"
            f" {self._without:,} results without an answer"
        )
        findings.checked.append("each end that is younger than results are kept has its result")
        findings.unchecked.append("costs, times and messages of results")
        if self._gone:
            findings.unchecked.append(
                f"the answers of {self._gone:,} results: their salts are gone"
            )
        if self._fresh:
            findings.unchecked.append(f"{self._fresh:,} results that came during this check")

    def _is_due(self, end: _End) -> bool:
        """Return whether the result of an end can't have been deleted for its age."""
        return end.is_told and end.at > self._since

    def _compare(
        self, ends: list[_End], body: object, where: str, told: str, findings: Findings
    ) -> None:
        digests = [(end.salt, end.hmac) for end in ends if end.salt is not None]
        if not digests and text_digest(b"", body) is None:
            self._without += 1  # It has no canonical form, and so no digest.
            return
        if not digests:
            findings.add("false_result", where, f"{told} has an answer, its evidence has none")
            return
        keys = [(self._salts(salt or ""), hmac) for salt, hmac in digests]
        known = [(key, hmac) for key, hmac in keys if key is not None]
        if any(text_digest(key, body) == hmac for key, hmac in known):
            self._equal += 1
        elif len(known) < len(keys):
            self._gone += 1
        else:
            self._differing.append((where, f"{told}: the answer is not the one that was signed"))
