"""The AsyncAPI document of the topics."""

from collections.abc import Iterator
from typing import Any

import jsonschema
import orjson
import pytest
from typer.testing import CliRunner

from shunter.cli import app
from topics import Catalogue, Settings, Timing, encode
from topics import Result as ResultRecord
from topics.admin.asyncapi import asyncapi

TOPICS = Catalogue(Settings(topic_prefix="yard")).topics(["boards"])
DOCUMENT = asyncapi(TOPICS, "1.2.3")


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def schema(name: str) -> dict[str, Any]:
    """Return a schema with what it refers to, as a validator wants it."""
    return {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}


def test_every_topic_is_a_channel_with_its_partitions() -> None:
    assert DOCUMENT["channels"].keys() == {topic.name for topic in TOPICS}
    held = DOCUMENT["channels"]["yard.held"]["bindings"]["kafka"]
    assert held["partitions"] == 4
    assert held["topicConfiguration"]["cleanup.policy"] == ["compact"]
    results = DOCUMENT["channels"]["yard.results"]["bindings"]["kafka"]
    assert results["topicConfiguration"]["retention.ms"] == 7 * 24 * 3600 * 1000


def test_every_reference_leads_somewhere() -> None:
    places = {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}
    assert set(references(DOCUMENT)) <= places


def test_what_is_written_is_what_is_described() -> None:
    record = orjson.loads(encode(ResultRecord("r", "completed", Timing(1.0))))
    jsonschema.validate(record, schema("Result"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record | {"status": "lost"}, schema("Result"))


def test_a_decision_in_rows_is_described() -> None:
    decision = {"schema": 1, "device": "h200", "pools": [["eu", "eu-west"]]}
    source = {"topic": "requests", "partition": 0, "offset": 1}
    record = {"request_id": "r", "step": "placed", "at": 1, "writer": "w", "source": source}
    jsonschema.validate(record | {"decision": decision}, schema("Evidence"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record | {"decision": decision | {"schema": 2}}, schema("Evidence"))


def test_a_misspelt_constraint_is_no_request() -> None:
    request = {"id": "r", "model": "m", "body": {}, "constraints": {"regions": ["eu"]}}
    jsonschema.validate(request, schema("InferenceRequest"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(
            request | {"constraints": {"region": ["eu"]}}, schema("InferenceRequest")
        )


def test_the_command_prints_it() -> None:
    printed = CliRunner().invoke(app, ["topics", "asyncapi", "--topic-prefix", "yard"])
    assert printed.exit_code == 0
    assert "yard.pool.premium-eu.direct" in orjson.loads(printed.stdout)["channels"]
