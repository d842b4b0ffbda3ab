"""Evidence of a span of time, step by step, as reports read it."""

from dataclasses import dataclass

import msgspec

from streams.evidence.projection import EvidenceStep, decode_step


@dataclass(slots=True)
class EvidencePeriod:
    """The steps from ``start`` to ``end``, epoch seconds; what is no evidence is counted."""

    start: float
    end: float
    unreadable: int = 0

    def step_of(self, value: bytes) -> EvidenceStep | None:
        """Return the step in a record, None if it is of another time or no evidence."""
        try:
            step = decode_step(value)
        except msgspec.MsgspecError:
            self.unreadable += 1
            return None
        return step if self.start <= step.at < self.end else None
