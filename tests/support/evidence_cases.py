"""Evidence as a test wants it: all of its names, or with inputs as the decision had them."""

from dataclasses import replace
from typing import Any

import orjson

from policies import Inputs, ReleaseInputs
from topics import Evidence, decode, encode
from topics.records.decision_rows import rounded


def named(value: bytes) -> Any:
    """Return a piece of evidence as parsed JSON with every name, whatever form it has."""
    return orjson.loads(encode(decode(Evidence, value)))


def with_inputs(step: Evidence) -> Evidence:
    """Return read evidence as it was before it was written: with inputs of their own kind."""
    if not isinstance(step.inputs, dict):
        return step
    kind: Any = ReleaseInputs if "head" in step.inputs else Inputs
    return replace(step, inputs=decode(kind, orjson.dumps(step.inputs)))


def in_units(step: Evidence) -> Evidence:
    """Return evidence as rows have it: estimates of candidates, and of the choice, in units."""
    promised, first = step.promised, step.candidates[0] if step.candidates else None
    is_first = promised is not None and first is not None
    estimates = ("cost_usd", "ttft_s", "finish_s", "tpot_s", "chance")
    is_first = is_first and all(getattr(first, n) == getattr(promised, n) for n in estimates)
    return replace(
        step,
        candidates=tuple(rounded(each) for each in step.candidates),
        promised=rounded(promised) if promised is not None and is_first else promised,
    )
