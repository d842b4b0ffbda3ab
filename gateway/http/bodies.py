"""JSON bodies read whole, within their limits of size and time."""

import asyncio
from typing import Any

from aiohttp import web

from gateway.http.body_room import BodyShare
from gateway.http.errors import ApiError
from topics import BadRecordError
from topics.wire.codec import decode_unique_json_object


async def read_json(
    request: web.Request, bytes_max: int, s_max: float, share: BodyShare
) -> dict[str, Any]:
    """Return the object in a request's body.

    Args:
        request: whose body nobody has read.
        bytes_max: longest body; no more is read.
        s_max: longest time for all of it.
        share: takes room for it, as it comes.

    Raises:
        ApiError: 415 it is no JSON by its type, 413 too large, 408 too slow, 400 no JSON object,
            503 no room.
    """
    return parsed(await read_bytes(request, bytes_max, s_max, share))


async def read_bytes(request: web.Request, bytes_max: int, s_max: float, share: BodyShare) -> bytes:
    """Return a request's JSON body as it came. Raises ApiError, as ``read_json``."""
    _check_type(request)
    announced = request.content_length or 0
    if announced > bytes_max:
        raise _too_large(bytes_max)
    share.check(announced)
    data = bytearray()
    try:
        async with asyncio.timeout(s_max):
            async for piece in request.content.iter_any():
                if len(data) + len(piece) > bytes_max:
                    raise _too_large(bytes_max)
                share.grow(len(piece))
                data += piece
    except TimeoutError as error:
        raise ApiError(
            408,
            "request_timeout",
            f"the body was not there within {s_max:g} s (SHUNTER_GATEWAY_READ_S_MAX)",
            headers={"Connection": "close"},
        ) from error
    return bytes(data)


def parsed(data: bytes) -> dict[str, Any]:
    """Return bytes as a JSON object.

    Raises:
        ApiError: they are none (400).
    """
    if not data.strip():
        raise ApiError(400, "invalid_json", "the body is empty; send a JSON object")
    try:
        return decode_unique_json_object(data)
    except BadRecordError as error:
        raise ApiError(400, "invalid_json", f"the body can't be used: {error.message}") from error


def _check_type(request: web.Request) -> None:
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise ApiError(
            415,
            "unsupported_media_type",
            f"the body comes with Content-Encoding {encoding:.40}; send it as it is",
        )
    is_json = request.content_type == "application/json"
    if not is_json or (request.charset or "utf-8").lower() not in {"utf-8", "utf8"}:
        raise ApiError(
            415,
            "unsupported_media_type",
            "the body must be JSON in UTF-8: send `Content-Type: application/json`",
        )


def _too_large(bytes_max: int) -> ApiError:
    return ApiError(
        413,
        "request_too_large",
        f"the body has more than {bytes_max:,} bytes (SHUNTER_REQUEST_BYTES_MAX)",
        headers={"Connection": "close"},
    )
