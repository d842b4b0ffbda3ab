"""The AsyncAPI document of an installation, made from the catalogue."""

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from topics.registry import Topic

ASYNCAPI_VERSION = "3.0.0"
_SCHEMA_PLACE = "#/components/schemas/{model}"
# Of a topic's configuration, the Kafka binding (0.5.0) has these.
_BOUND = ("retention.ms", "max.message.bytes", "delete.retention.ms")


def asyncapi(topics: Sequence[Topic], version: str) -> dict[str, Any]:
    """Return the AsyncAPI 3.0 document of these topics.

    Each topic is a channel with one message, whose payload is the JSON Schema of its record model.

    Args:
        topics: as the catalogue declares them.
        version: Shunter's version.
    """
    schemas: dict[str, Any] = {}
    for kind in {topic.schema: None for topic in topics if topic.schema is not None}:
        schema = TypeAdapter(kind).json_schema(ref_template=_SCHEMA_PLACE)
        schemas |= schema.pop("$defs", {})
        schemas[kind.__name__] = schema
    return {
        "asyncapi": ASYNCAPI_VERSION,
        "info": {"title": "Shunter", "version": version, "license": {"name": "Apache-2.0"}},
        "defaultContentType": "application/json",
        "channels": {topic.name: _channel(topic) for topic in topics},
        "components": {"schemas": schemas},
    }


def _channel(topic: Topic) -> dict[str, Any]:
    message: dict[str, Any] = {
        "summary": topic.value,
        "bindings": {"kafka": {"key": {"type": "string", "description": topic.key}}},
    }
    if topic.schema is not None:
        message["payload"] = {"$ref": _SCHEMA_PLACE.format(model=topic.schema.__name__)}
    config = topic.config()
    bound = {name: int(config[name]) for name in _BOUND if name in config}
    binding = {
        "topic": topic.name,
        "partitions": topic.partitions,
        "topicConfiguration": {"cleanup.policy": [topic.cleanup], **bound},
    }
    return {
        "address": topic.name,
        "messages": {"record": message},
        "bindings": {"kafka": binding},
    }
