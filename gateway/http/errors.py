"""Errors as OpenAI's API writes them, for any path and method."""

from collections.abc import Mapping
from math import ceil
from typing import Any

import orjson
from aiohttp import web

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_SERVERS_FAULT = 500
# Where another try can't help: SDKs would try 409 and all from 500 on again.
_FINAL = frozenset({409, 422, 502, 504})
# OpenAI's Python client 1.109 takes no longer Retry-After for one, and comes again within 8 s.
OBEYED_S_MAX = 60


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        code: stable, for programs.
        message: one sentence for people: what was wrong, where, and what to do.
        param: the field of the body, or the header, that is at fault.
        details: a reason code by pool.
        retry_after_s: seconds after which another try may succeed.
        headers: more of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str | None,
        message: str,
        *,
        param: str | None = None,
        details: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        type_: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.details = details
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})
        self._type = type_

    @property
    def type(self) -> str:
        """The kind of error, in OpenAI's words."""
        if self._type is not None:
            return self._type
        default = "server_error" if self.status >= _SERVERS_FAULT else "invalid_request_error"
        return _TYPES.get(self.status, default)

    def body(self) -> dict[str, Any]:
        """Return the envelope."""
        error: dict[str, Any] = {
            "message": as_unicode(self.message),
            "type": self.type,
            "param": None if self.param is None else as_unicode(self.param),
            "code": self.code,
        }
        if self.details is not None:
            error["details"] = dict(self.details)
        return {"error": error}

    def response(self) -> web.Response:
        """Return the whole answer."""
        headers = dict(self.headers)
        if self.status in _FINAL:
            headers["x-should-retry"] = "false"
        if self.retry_after_s is not None:
            wait_s = max(1, ceil(self.retry_after_s))
            headers["Retry-After"] = str(wait_s)
            if wait_s > OBEYED_S_MAX:
                headers["x-should-retry"] = "false"
        return json_response(self.body(), status=self.status, headers=headers)


def overloaded(most: int, wait_s: float) -> ApiError:
    """Return the error for one request more than the ``most`` that a gateway takes."""
    return ApiError(
        503,
        "overloaded",
        f"{most} requests are open at this gateway, as many as it takes"
        " (SHUNTER_GATEWAY_OPEN_MAX); try again",
        retry_after_s=wait_s,
    )


def bodies_overloaded(most: int) -> ApiError:
    """Return the error for a body that has no room beside those in memory, ``most`` bytes."""
    return ApiError(
        503,
        "overloaded",
        "the requests that Kafka has not taken yet have as many bytes as this gateway takes,"
        f" {most:,} (SHUNTER_GATEWAY_BODY_BYTES_MAX); try again",
        retry_after_s=1.0,
    )


def as_unicode(text: str) -> str:
    """Return a text of HTTP as one that JSON has; bytes that were no UTF-8 become ``?``."""
    return text.encode("utf-8", "replace").decode()


def json_response(
    body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a JSON answer."""
    return web.Response(
        body=orjson.dumps(body),
        status=status,
        headers=headers,
        content_type="application/json",
    )
