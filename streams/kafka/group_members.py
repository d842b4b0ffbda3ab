"""The static members of a consumer group, by name.

This uses version 4 of DescribeGroups, which aiokafka lacks: the first that returns the names of
static members (KIP-345); shape from the message definitions of Apache Kafka. It needs no right
beyond those of a member. A member names its process in its metadata: its client id would stay that
of the first process that had the name (seen on Kafka 4.3.1).
"""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from aiokafka.errors import for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Bytes, Int16, Int32, Schema, String

from streams.kafka.process_name import Process, read_process

_TEXT = String("utf-8")
_LEAVES = b".left"


class _DescribeGroupsResponseV4(Response):  # type: ignore[misc]
    API_KEY = 15
    API_VERSION = 4
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "groups",
            Array(
                ("error_code", Int16),
                ("group", _TEXT),
                ("state", _TEXT),
                ("protocol_type", _TEXT),
                ("protocol", _TEXT),
                (
                    "members",
                    Array(
                        ("member_id", _TEXT),
                        ("group_instance_id", _TEXT),
                        ("client_id", _TEXT),
                        ("client_host", _TEXT),
                        ("member_metadata", Bytes),
                        ("member_assignment", Bytes),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
    )


class _DescribeGroupsRequestV4(RequestStruct):  # type: ignore[misc]
    API_KEY = 15
    API_VERSION = 4
    RESPONSE_TYPE = _DescribeGroupsResponseV4
    SCHEMA = Schema(("groups", Array(_TEXT)), ("include_authorized_operations", Boolean))


class DescribeGroup(Request[_DescribeGroupsRequestV4]):  # type: ignore[misc]
    """Asks a coordinator for the members of a group."""

    API_KEY = 15

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, struct: Any) -> Any:
        """Return the request in the version that the broker understands."""
        return struct([self._group], False)


class GroupMember(NamedTuple):
    """A static member of a group."""

    address: str
    """The first address of the name, as the broker saw it."""
    process: Process | None
    """None if unknown: during a rebalance, or with other versions."""
    has_left: bool
    """Whether the process has announced its stop."""


async def member_named(
    send: Callable[[DescribeGroup], Awaitable[Any]], group: str, name: str
) -> GroupMember | None:
    """Return the member of a group that has this static name.

    Args:
        send: to the coordinator of the group.
        group: to ask for.
        name: of the member, its ``group.instance.id``.

    Raises:
        KafkaError: the coordinator doesn't tell.
    """
    response = await send(DescribeGroup(group))
    for code, _, _, _, _, members, _ in response.groups:
        if code:
            raise for_code(code)(group)
        for _, found, _, address, metadata, _ in members:
            if found == name:
                return GroupMember(address.lstrip("/"), *_read_word(metadata))
    return None


def word_of(process: Process, *, leaves: bool = False) -> bytes:
    """Return what a process announces about itself as a member."""
    return process.word.encode() + (_LEAVES if leaves else b"")


def _read_word(metadata: bytes) -> tuple[Process | None, bool]:
    """Return the process named at the end of a member's metadata, and whether it has left."""
    has_left = metadata.endswith(_LEAVES)
    told = metadata.removesuffix(_LEAVES)
    start = told.rfind(b"shunter.")
    return read_process(told[start:].decode(errors="replace")) if start >= 0 else None, has_left
