"""Keys that stand twice are found however the JSON around them is written."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topics.wire.codec import JSON_DEPTH_MAX, LONG_BYTES, decode_unique_json_object
from topics.wire.errors import BadRecordError

names = st.sampled_from(["a", "b", 'c"', "d\u00e9", "\\", "[", "1"])
leaves = st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats(-1e300, 1e300) | names
spaces = st.sampled_from(["", " ", "\n\t"])


@st.composite
def texts(draw: st.DrawFn, depth: int = 3) -> str:
    """JSON text, with objects whose keys may stand twice, and any space between."""
    kind = draw(st.sampled_from(["object", "list", "leaf"])) if depth else "leaf"
    if kind == "leaf":
        return json.dumps(draw(leaves), ensure_ascii=draw(st.booleans()), allow_nan=False)
    space = draw(spaces)
    inner = draw(st.lists(texts(depth - 1), max_size=3))
    if kind == "list":
        return f"[{space}" + f"{space},".join(inner) + "]"
    members = [json.dumps(draw(names)) + f"{space}:{space}" + each for each in inner]
    return "{" + f",{space}".join(members) + "}"


def has_twice(text: str) -> bool:
    found = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.append(len(dict(pairs)) < len(pairs))
        return dict(pairs)

    json.loads(text, object_pairs_hook=note)
    return any(found)


@settings(deadline=None)
@given(texts())
def test_a_key_that_stands_twice_is_refused_and_nothing_else(text: str) -> None:
    value = f'{{"x": {text}}}'.encode()
    if has_twice(value.decode()):
        with pytest.raises(BadRecordError, match="stands twice"):
            decode_unique_json_object(value)
    else:
        decode_unique_json_object(value)


@settings(deadline=None)
@given(texts(), st.sampled_from(["a" * LONG_BYTES, "b\n" * LONG_BYTES]))
def test_a_key_that_stands_twice_is_found_beside_long_text(text: str, long: str) -> None:
    value = f'{{"x":{text},"long":{json.dumps(long)}}}'.encode()
    if has_twice(value.decode()):
        with pytest.raises(BadRecordError, match="stands twice"):
            decode_unique_json_object(value)
    else:
        decode_unique_json_object(value)


def test_what_orjson_takes_much_memory_to_write_it_does_not_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: object) -> bytes:
        raise AssertionError("orjson writes it")

    value = json.dumps({"long": "a" * LONG_BYTES, "many": [1] * LONG_BYTES}).encode()
    monkeypatch.setattr("topics.wire.codec.orjson.dumps", refuse)
    decode_unique_json_object(value)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_depth_is_refused_from_its_limit_on(opening: str, closing: str) -> None:
    def nested(levels: int) -> bytes:
        return f'{{"x":{opening * levels}1{closing * levels}}}'.encode()

    decode_unique_json_object(nested(JSON_DEPTH_MAX - 1))
    with pytest.raises(BadRecordError, match="deeper"):
        decode_unique_json_object(nested(JSON_DEPTH_MAX))
