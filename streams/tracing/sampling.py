"""Trace sampling, as ``OTEL_TRACES_SAMPLER`` asks, and trace ids.

The SDK's samplers decide the same. Each takes a microsecond and four objects for every request,
most of which are not sampled.
"""

import logging
import os
import random
from dataclasses import dataclass, field
from typing import Self

from streams.engine.trace_context import Context

logger = logging.getLogger(__name__)

DEFAULT = "parentbased_always_on"

_LOW_BITS = (1 << 64) - 1
# The share by the last part of a sampler's name; None if the argument has it.
_SHARES = {"always_on": 1.0, "always_off": 0.0, "traceidratio": None}
_FOLLOWS = "parentbased_"


@dataclass(frozen=True, slots=True)
class Sampling:
    """A share of all traces, chosen by their ids, so that every process chooses the same.

    ``follows`` is whether an earlier process's decision stands; ids whose low half is ``below`` are
    in the share.
    """

    share: float
    follows: bool = True
    below: int = field(init=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"a share of traces of {self.share}: it must be from 0 to 1")
        object.__setattr__(self, "below", round(self.share * (_LOW_BITS + 1)))

    @classmethod
    def from_environment(cls) -> Self:
        """Return the sampling of the standard variables; the default if they are unreadable.

        Raises:
            ValueError: the share is none.
        """
        name = os.environ.get("OTEL_TRACES_SAMPLER", "").strip().lower() or DEFAULT
        if name.removeprefix(_FOLLOWS) not in _SHARES:
            logger.warning("OTEL_TRACES_SAMPLER=%s is unknown: %s is used", name, DEFAULT)
            name = DEFAULT
        share = _SHARES[name.removeprefix(_FOLLOWS)]
        if share is None:
            share = _argument()
        return cls(share, name.startswith(_FOLLOWS))

    def begins(self, trace_id: int) -> bool:
        """Return whether a trace that begins here is sampled."""
        return trace_id & _LOW_BITS < self.below

    def goes_on(self, parent: Context) -> bool:
        """Return whether a trace that began elsewhere is sampled."""
        return parent.is_sampled if self.follows else self.begins(parent.trace_id)


def new_trace_id() -> int:
    """Return the id of a trace, never 0."""
    return random.getrandbits(128) or 1


def new_span_id() -> int:
    """Return the id of a span, never 0."""
    return random.getrandbits(64) or 1


def _argument() -> float:
    told = os.environ.get("OTEL_TRACES_SAMPLER_ARG", "")
    try:
        return float(told)
    except ValueError:
        logger.warning("OTEL_TRACES_SAMPLER_ARG=%s is no number: every trace is sampled", told)
        return 1.0
