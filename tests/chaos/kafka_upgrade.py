"""An upgrade of Kafka under load: each broker in turn, then the features that the new one has.

SHUNTER_KAFKA_VERSION=3.9.2 python tests/chaos/run.py --nodes 3 --rate 20 --only upgrade_kafka
"""

import asyncio
from typing import Any

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int8,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)
from cluster_faults import ClusterScene
from operations import ask, settled

from topics.embedded_broker import jars, jvm

OLD, NEW = "3.9.2", "4.4.0"
# Of the new one the highest. That of transactions decides whether each has an epoch of its own.
FEATURES = {
    "metadata.version": 33,
    "transaction.version": 2,
    "group.version": 1,
    "eligible.leader.replicas.version": 1,
}
UPGRADE = 1
TIMEOUT_MS = 10_000
# So long requests come between two changes of features.
BETWEEN_S = 3.0
_TEXT = CompactString("utf-8")


class _UpdateFeaturesResponse(Response):
    API_KEY = 57
    API_VERSION = 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("error_message", _TEXT),
        (
            "results",
            CompactArray(
                ("feature", _TEXT),
                ("error_code", Int16),
                ("error_message", _TEXT),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _UpdateFeaturesStruct(RequestStruct):
    FLEXIBLE_VERSION = True
    API_KEY = 57
    API_VERSION = 1
    RESPONSE_TYPE = _UpdateFeaturesResponse
    SCHEMA = Schema(
        ("timeout_ms", Int32),
        (
            "updates",
            CompactArray(
                ("feature", _TEXT),
                ("max_version_level", Int16),
                ("upgrade_type", Int8),
                ("tags", TaggedFields),
            ),
        ),
        ("validate_only", Boolean),
        ("tags", TaggedFields),
    )


class _UpdateFeatures(Request[_UpdateFeaturesStruct]):
    API_KEY = 57

    def __init__(self, feature: str, level: int) -> None:
        self._feature = feature
        self._level = level

    def build(self, struct: Any) -> Any:
        return struct(TIMEOUT_MS, [(self._feature, self._level, UPGRADE, {})], False, {})


async def upgrade_kafka(scene: ClusterScene) -> None:
    """Brokers of 3.9.2 replaced by 4.4.0 in turn, on their data; then its features finalized"""
    assert jars.KAFKA_VERSION == OLD, f"SHUNTER_KAFKA_VERSION={OLD}"
    # What is started from now on is of the other version.
    for module in (jars, jvm):
        vars(module)["KAFKA_VERSION"] = NEW
    jars.COORDINATES = jars.COORDINATES.replace(OLD, NEW)
    jars.PINS = jars.PINS.with_name(f"kafka-{NEW}.sha256")
    await asyncio.to_thread(jars.kafka_jars)
    for node in scene.cluster.nodes:
        await asyncio.to_thread(node.restart)
        await settled(scene.kafka)
    for feature, level in FEATURES.items():
        told = await ask(scene.bootstrap_servers, _UpdateFeatures(feature, level))
        assert not told.error_code, (feature, told)
        assert not any(result[1] for result in told.results), (feature, told)
        await asyncio.sleep(BETWEEN_S)
