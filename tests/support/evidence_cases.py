"""Evidence as a test wants it: all of its names, or with inputs as the decision had them."""

from dataclasses import replace
from typing import Any

import orjson
import rfc8785

from policies import Decision, Inputs, ReleaseInputs
from topics import Evidence, Profile, Source, decode, encode
from topics.records import decision_rows
from topics.records.decision_rows import rounded
from topics.records.evidence_bytes import evidence_bytes


def named(value: bytes) -> Any:
    """Return a piece of evidence as parsed JSON with every name, whatever form it has."""
    return orjson.loads(encode(decode(Evidence, value)))


def is_canonical(raw: bytes) -> bool:
    """Return True if JSON is what the reference implementation of RFC 8785 writes."""
    return bool(rfc8785.dumps(orjson.loads(raw)) == raw)


def with_inputs(step: Evidence) -> Evidence:
    """Return read evidence as it was before it was written: with inputs of their own kind."""
    if not isinstance(step.inputs, dict):
        return step
    kind: Any = ReleaseInputs if "head" in step.inputs else Inputs
    return replace(step, inputs=decode(kind, orjson.dumps(step.inputs)))


def in_units(step: Evidence) -> Evidence:
    """Return a decision's evidence as it is read back: what it estimates stands in whole units."""
    promised, shadow = step.promised, step.shadow
    is_decided = step.profile is not None or step.step in {"placed", "held", "released"}
    if shadow is not None:
        cost_usd, chance = decision_rows.in_units(shadow.cost_usd, shadow.chance)
        shadow = replace(shadow, cost_usd=cost_usd, chance=chance)
    return replace(
        step,
        shadow=shadow,
        candidates=tuple(rounded(each) for each in step.candidates),
        promised=rounded(promised) if promised is not None and is_decided else promised,
    )


def inputs_as_recorded(asked: Profile, inputs: Inputs, decision: Decision, at: float) -> Inputs:
    """Inputs of a decision as they are read from the bytes of its evidence."""
    record = Evidence(
        "r",
        "placed",
        at,
        "router/a",
        Source("inference.requests", 0, 0),
        profile=asked,
        inputs=inputs,
        candidates=decision.candidates,
    )
    return with_inputs(decode(Evidence, evidence_bytes(record))).inputs
