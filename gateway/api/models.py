"""The models that are served, and the results of requests."""

from typing import Any

from aiohttp import web

from gateway.api.answers import disclosed
from gateway.exchange.request_ids import belongs_to, made_at
from gateway.http.errors import ApiError, json_response
from gateway.http.state import GATEWAY, caller_of
from policies import Option


async def models(request: web.Request) -> web.Response:
    """List the models that a pool declares."""
    gateway = request.app[GATEWAY]
    found = sorted(gateway.fleet.models().items())
    data = [_model(name, options) for name, options in found]
    return json_response({"object": "list", "data": data})


async def model(request: web.Request) -> web.Response:
    """Return one model."""
    gateway, name = request.app[GATEWAY], request.match_info["id"]
    options = gateway.fleet.options_of(name)
    if not options:
        message = f"the model {name!r:.140} is none that is served here"
        raise ApiError(404, "model_not_found", message, param="model")
    return json_response(_model(name, options))


def _model(name: str, options: tuple[Option, ...]) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        # Fleets don't tell when a model was made, and clients want a number.
        "created": 0,
        "owned_by": "shunter",
        "shunter": {
            "operations": sorted({name for option in options for name in option.operations}),
            "context_tokens": max(option.context_tokens for option in options),
            "regions": sorted({option.region for option in options}),
            "precisions": sorted({option.precision for option in options}),
            "pools": sorted({option.pool for option in options}),
        },
    }


async def request_result(request: web.Request) -> web.Response:
    """Return the result of a request of the caller's tenant, without its texts."""
    gateway, request_id = request.app[GATEWAY], request.match_info["id"]
    if not belongs_to(request_id, caller_of(request).tenant):
        raise _not_found(request_id)
    result = await gateway.exchange.result(request_id, since=made_at(request_id))
    if result is None:
        if gateway.exchange.is_followed(request_id):
            return json_response({"id": request_id, "status": "in_progress"})
        raise _not_found(request_id)
    told = disclosed(result) | {"metadata": result.metadata, "error": result.error}
    return json_response(told)


def _not_found(request_id: str) -> ApiError:
    message = f"no result of a request {request_id!r:.140} of this tenant is known"
    return ApiError(404, "request_not_found", message)
