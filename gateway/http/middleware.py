"""Middleware of each request: an id, the key, the limit of open requests, errors as JSON."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from gateway.exchange.publisher import UnavailableError
from gateway.exchange.request_ids import new_id
from gateway.http.errors import ApiError, overloaded
from gateway.http.spans import HttpSpan
from gateway.http.state import BY_TURN, CALLER, GATEWAY, REQUEST_ID, SPAN, Gateway
from topics.objects import ObjectsError
from topics.openai_api.operations import instead_of

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
API_PREFIX = "/v1/"
UNAVAILABLE_RETRY_S = 2.0
_ONCE = {"Authorization": (401, "invalid_api_key"), "Idempotency-Key": (400, "invalid_value")}

logger = logging.getLogger(__name__)


@web.middleware
async def answer_in_form(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors as OpenAI's API does, and name the request in each answer."""
    gateway = request.app[GATEWAY]
    began_at = gateway.clock.now()
    request[REQUEST_ID] = new_id("", began_at)
    resource = request.match_info.route.resource
    route = None if resource is None else resource.canonical
    topic, code = gateway.exchange.catalogue.requests, None
    origin = gateway.proxies.origin(request)
    span = request[SPAN] = HttpSpan(gateway.telemetry, topic, gateway.clock, request, origin)
    is_api = request.path.startswith(API_PREFIX)
    try:
        response = await _admitted(request, handler, gateway)
    except ApiError as error:
        response, code = error.response(), error.code
    except UnavailableError as error:
        response = _unavailable(str(error))
    except ObjectsError as error:
        logger.warning("files and batches can't be reached: %s", error)
        response = _unavailable("files and batches can't be reached now")
    except web.HTTPException as error:
        response = as_api_error(request, error).response()
    except (asyncio.CancelledError, ConnectionError):
        gateway.meter.left()
        if is_api:
            span.end(route, None)
        raise
    except Exception:
        logger.exception("%s %s failed", request.method, request.path)
        message = "the gateway failed on this request in an unforeseen way; its log says where"
        response = ApiError(500, "internal_error", message).response()
    if is_api:
        span.end(route, response.status, code)
    gateway.meter.answered(
        route or "none", response.status, max(0.0, gateway.clock.now() - began_at)
    )
    if not response.prepared:
        response.headers.setdefault("x-request-id", request[REQUEST_ID])
    return response


def _unavailable(told: str) -> web.Response:
    message = f"{told}; try again"
    return ApiError(503, "unavailable", message, retry_after_s=UNAVAILABLE_RETRY_S).response()


async def _admitted(request: web.Request, handler: Handler, gateway: Gateway) -> web.StreamResponse:
    is_known = request.match_info.http_exception is None
    if not (is_known and request.path.startswith(API_PREFIX)):
        return await handler(request)
    # Which of two counts is not for one of the servers on the way to guess.
    for name, (status, code) in _ONCE.items():
        if len(set(request.headers.getall(name, ()))) > 1:
            raise ApiError(status, code, f"there are two different headers {name}", param=name)
    caller = gateway.keys.caller(request.headers.get("Authorization"))
    request[CALLER] = caller
    request[REQUEST_ID] = new_id(caller.tenant, gateway.clock.now())
    with gateway.key_limits.admitted(caller.key, gateway.clock.now()):
        return await _counted(request, handler, gateway)


async def _counted(request: web.Request, handler: Handler, gateway: Gateway) -> web.StreamResponse:
    most = gateway.settings.gateway_open_max
    reads = most if request.path in request.app[BY_TURN] else 0
    if gateway.open_requests >= most + reads:
        raise overloaded(most, 1.0)
    gateway.open_requests += 1
    gateway.meter.open_requests.set(gateway.open_requests)
    try:
        return await handler(request)
    finally:
        gateway.open_requests -= 1
        gateway.meter.open_requests.set(gateway.open_requests)


def as_api_error(request: web.Request, error: web.HTTPException) -> ApiError:
    """Return what aiohttp raises by itself in the form of the API."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return ApiError(
            405,
            "method_not_allowed",
            f"{request.method} is not a method of {request.path:.200}, which takes {allowed}",
            headers={"Allow": allowed},
        )
    if isinstance(error, web.HTTPNotFound):
        where = f"{request.method} {request.path:.200}"
        instead = instead_of(request.path)
        if instead is not None:
            return ApiError(404, "operation_not_served", f"{where} is not served here; {instead}")
        return ApiError(404, "unknown_url", f"there is no {where}; see /docs")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return ApiError(413, "request_too_large", "the body is too large")
    if isinstance(error, web.HTTPExpectationFailed):
        message = "the header Expect has no other value than 100-continue"
        return ApiError(417, "invalid_value", message, param="Expect")
    return ApiError(error.status, None, error.reason)
