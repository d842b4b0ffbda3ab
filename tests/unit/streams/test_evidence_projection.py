"""Evidence read in part has what stands in the whole of it."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from corpus_cases import PREFIX, ROOT, Corpus, versions
from evidence_cases import with_inputs

from streams.evidence import projection
from streams.evidence.projection import RoutedStep, decode_routed_step, decode_step
from topics import Envelope, Evidence, Footprint, decode, encode
from topics.records.evidence_bytes import evidence_bytes
from topics.records.money import Spent


def evidence() -> list[bytes]:
    """Return evidence as recorded, and with decisions in rows."""
    corpora = [Corpus.read(ROOT / version) for version in versions()]
    recorded = [r.value or b"" for c in corpora for r in c.topics[f"{PREFIX}.evidence"]]
    # What no recorded version had yet.
    later = replace(
        decode(Evidence, recorded[0]),
        energy_wh=0.25,
        footprint=Footprint(4.5, 300.0, 0.25, 0.075),
        assumed=True,
        held_promise=Envelope(0.01, 0.5, 2.0, 0.05, 0.9),
        spent=Spent(nano_usd=12_000, input_tokens=30, output_tokens=4, device_s=0.5),
    )
    decided = next(found for each in recorded if (found := decode(Evidence, each)).profile)
    assert decided.profile is not None
    several = replace(decided, profile=replace(decided.profile, prompts=3, replies=2, key="k"))
    written = [evidence_bytes(with_inputs(decode(Evidence, each))) for each in recorded]
    later_ones = [evidence_bytes(with_inputs(each)) for each in (later, several)]
    return [*recorded, *written, *later_ones]


def assert_same(seen: Any, record: Any) -> None:
    """Compare member by member; what is not seen is not compared."""
    if isinstance(seen, msgspec.Struct):
        for name in seen.__struct_fields__:
            if name == "decision":
                # Read into the others.
                continue
            assert_same(getattr(seen, name), getattr(record, name))
    elif isinstance(seen, tuple):
        for one, other in zip(seen, record, strict=True):
            assert_same(one, other)
    else:
        assert seen == record


@pytest.mark.parametrize("read", [decode_step, decode_routed_step])
def test_a_step_has_what_its_record_has(read: Any) -> None:
    values = evidence()
    for value in values:
        assert_same(read(value), decode(Evidence, value))
    steps = [decode_routed_step(value) for value in values]
    told = [step.profile for step in steps if step.profile is not None]
    assert any((each.prompts, each.replies) == (3, 2) for each in told)
    for name in set(RoutedStep.__struct_fields__) - {"decision"}:
        assert any(getattr(step, name) for step in steps), name


def test_fields_stand_in_the_order_in_which_they_are_written() -> None:
    """Canonical JSON is sorted, and a key is looked for behind the one before."""
    for each in vars(projection).values():
        if isinstance(each, type) and issubclass(each, msgspec.Struct):
            if each.__struct_config__.array_like:
                continue
            own = [name for name in each.__struct_fields__ if name in each.__annotations__]
            assert list(own) == sorted(own), each


def test_what_each_record_has_must_be_there() -> None:
    whole = decode(Evidence, evidence()[0])
    for name in ("request_id", "step", "at", "source"):
        with pytest.raises(msgspec.MsgspecError):
            decode_step(encode(replace(whole, **{name: None})))
