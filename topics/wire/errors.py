"""Errors of records that can't be used."""

from typing import Literal

Stage = Literal["decode", "validate", "handle", "produce"]


class BadRecordError(ValueError):
    """A record that isn't what its topic promises.

    Attributes:
        stage: where it failed, as in Kafka Connect's ``__connect.errors.stage``.
        reason: stable code for programs (``shunter-reason`` on the dead letter).
        message: one sentence for people: what was wrong, where, and what to do.
    """

    def __init__(self, stage: Stage, reason: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage
        self.reason = reason
        self.message = message
