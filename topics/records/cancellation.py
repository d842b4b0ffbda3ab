"""The cancellation: a record whose key is the id of a request to cancel."""

from dataclasses import dataclass

import orjson

from topics.records.request import ID_CHARACTERS_MAX
from topics.wire.errors import BadRecordError

# How long a cancellation counts, for requests that are not there yet as well.
CANCELLATION_S = 24 * 3600
REASON_CHARACTERS_MAX = 200


@dataclass(frozen=True, slots=True)
class Cancellation:
    """The value, which may be absent: the client's reason to cancel."""

    reason: str | None = None


def parse_cancellation(key: bytes | None, value: bytes | None) -> tuple[str, Cancellation]:
    """Return the id of the request, and the cancellation; the value may lack a reason.

    Raises:
        BadRecordError: the key is not an id.
    """
    try:
        request_id = (key or b"").decode()
    except UnicodeDecodeError as error:
        raise _not_an_id("is not UTF-8") from error
    if not 1 <= len(request_id) <= ID_CHARACTERS_MAX:
        raise _not_an_id(f"has {len(request_id)} characters, not 1 to {ID_CHARACTERS_MAX}")
    try:
        fields = orjson.loads(value or b"{}")
    except orjson.JSONDecodeError:
        return request_id, Cancellation()
    reason = fields.get("reason") if isinstance(fields, dict) else None
    if not isinstance(reason, str):
        return request_id, Cancellation()
    return request_id, Cancellation(reason[:REASON_CHARACTERS_MAX])


def _not_an_id(what: str) -> BadRecordError:
    message = f"the key {what}; the key of a cancellation is the id of a request"
    return BadRecordError("validate", "invalid_cancellation", message)
