"""`/v1/batches`: create, list, show, cancel."""

import hashlib
from typing import Any

import orjson
from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from gateway.api.runs import key_of, reused
from gateway.api.translation import ENDPOINTS
from gateway.batches.keys import BatchKey, BatchKeys
from gateway.batches.record import BatchRecord
from gateway.batches.service import BatchService
from gateway.batches.store import (
    BatchFolder,
    BatchStore,
    NotCancellableError,
    new_batch_id,
    told,
)
from gateway.files.endpoints import FILES, expires_after
from gateway.files.paging import check_query, page
from gateway.files.store import FileRecord
from gateway.files.threads import in_thread
from gateway.http.bodies import read_json
from gateway.http.errors import ApiError, json_response
from gateway.http.state import GATEWAY, SPAN, caller_of
from topics import duration_s
from topics.openai_api.operations import instead_of
from topics.records.request import Duration

BATCHES = web.AppKey("batches", BatchStore)
KEYS = web.AppKey("batch_keys", BatchKeys)
SERVICE = web.AppKey("batch_service", BatchService)
BODY_BYTES_MAX = 64 * 1024
WINDOW_S_MAX = 7 * 86400
LIST_MAX, LIST_DEFAULT = 100, 20
PAIRS_MAX, KEY_CHARACTERS_MAX, VALUE_CHARACTERS_MAX = 16, 64, 512
_REQUIRED = ("input_file_id", "endpoint", "completion_window")
_FIELDS = (*_REQUIRED, "metadata", "output_expires_after")
_DURATION: TypeAdapter[str] = TypeAdapter(Duration)


async def create(request: web.Request) -> web.Response:
    """Make a batch of a file; it outlives this process when this answers.

    A second request with its ``Idempotency-Key`` gets the batch that the first one made.
    """
    gateway, tenant = request.app[GATEWAY], caller_of(request).tenant
    with gateway.bodies.share() as share:
        s_max = gateway.settings.gateway_read_s_max
        body = await read_json(request, BODY_BYTES_MAX, s_max, share)
    batch = _wanted(request, body)
    text = request.headers.get("Idempotency-Key")
    if text is None:
        await _make(request, batch)
        return json_response(batch.told())
    key = key_of(tenant, request.path, text)
    digest = hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()
    claim, keys = BatchKey(batch.id, digest), request.app[KEYS]
    held = await in_thread(keys.claim, tenant, key.text, claim, batch.created_at)
    if held.digest != digest:
        raise reused()
    folder = await in_thread(request.app[BATCHES].get, tenant, held.batch_id)
    if folder is None:
        # Whoever claimed the key has made no batch yet, and may have died.
        batch.id = held.batch_id
        try:
            await _make(request, batch)
        except ApiError:
            await in_thread(keys.forget, tenant, key.text)
            raise
    shown = batch.told() if folder is None else await in_thread(told, folder)
    headers = {} if held == claim else {"idempotent-replayed": "true"}
    return json_response(shown, headers=headers)


def _wanted(request: web.Request, body: dict[str, Any]) -> BatchRecord:
    """Return the batch that a body asks for. Raises ApiError where it asks for none (400)."""
    _check_fields(body)
    caller, now = caller_of(request), request.app[GATEWAY].clock.now()
    created_in = request[SPAN].context
    return BatchRecord(
        id=new_batch_id(now),
        tenant=caller.tenant,
        endpoint=_endpoint(body["endpoint"]),
        input_file_id=body["input_file_id"],
        completion_window=body["completion_window"],
        created_at=now,
        expires_at=now + _window_s(body["completion_window"]),
        metadata=_metadata(body.get("metadata")),
        output_expires_s=expires_after(body.get("output_expires_after"), "output_expires_after"),
        key_id=caller.key_id,
        traceparent=None if created_in is None else created_in.header().decode(),
    )


async def _make(request: web.Request, batch: BatchRecord) -> None:
    """Make a batch. Raises ApiError where its input is none (404, 400)."""
    files = request.app[FILES]
    record = await in_thread(files.get, batch.tenant, batch.input_file_id, batch.created_at)
    if record is None:
        raise _no_file(batch.input_file_id)
    _check_purpose(record)
    try:
        await in_thread(request.app[BATCHES].create, batch, files.place(record))
    except FileNotFoundError:
        raise _no_file(batch.input_file_id) from None
    request.app[SERVICE].look_now()


async def listed(request: web.Request) -> web.Response:
    """List the tenant's batches, the newest first."""
    check_query(request, "after", "limit")
    store, tenant = request.app[BATCHES], caller_of(request).tenant

    def told_of(batch_ids: list[str]) -> dict[str, dict[str, Any]]:
        return store.told(tenant, batch_ids)

    def whole() -> dict[str, Any]:
        ids = store.ids(tenant)
        return page(
            request, ids, told_of, limit_max=LIST_MAX, limit=LIST_DEFAULT, is_ascending=False
        )

    return json_response(await in_thread(whole))


async def shown(request: web.Request) -> web.Response:
    """Show a batch as it is now."""
    return json_response(await in_thread(told, await _found(request)))


async def cancel(request: web.Request) -> web.Response:
    """Cancel a batch: no more of its lines are published, and those that wait or run end."""
    folder = await _found(request)
    try:
        await in_thread(folder.cancel, request.app[GATEWAY].clock.now())
    except NotCancellableError as error:
        message = f"the batch is {error.status} and can't be cancelled any more"
        raise ApiError(409, "batch_not_cancellable", message) from error
    return json_response(await in_thread(told, folder))


async def _found(request: web.Request) -> BatchFolder:
    batch_id, tenant = request.match_info["id"], caller_of(request).tenant
    folder = await in_thread(request.app[BATCHES].get, tenant, batch_id)
    if folder is None:
        message = f"there is no batch {batch_id!r:.100}"
        raise ApiError(404, "batch_not_found", message, param="id")
    return folder


def _no_file(file_id: str) -> ApiError:
    message = f"there is no file {file_id!r:.100}"
    return ApiError(404, "file_not_found", message, param="input_file_id")


def _check_purpose(record: FileRecord) -> None:
    if record.purpose != "batch":
        message = f"the file's purpose is {record.purpose}; that of a batch's input is batch"
        raise ApiError(400, "invalid_value", message, param="input_file_id")


def _check_fields(body: dict[str, Any]) -> None:
    for name in body:
        if name not in _FIELDS:
            message = f"{name:.60} is not a field of a batch; known are {', '.join(_FIELDS)}"
            raise ApiError(400, "unknown_parameter", message, param=name[:60])
    for name in _REQUIRED:
        if body.get(name) is None:
            message = f"the body has no {name}"
            raise ApiError(400, "missing_required_parameter", message, param=name)
        if not isinstance(body[name], str):
            raise ApiError(400, "invalid_type", f"{name} must be a string", param=name)


def _endpoint(endpoint: str) -> str:
    if endpoint not in ENDPOINTS:
        message = f"endpoint {endpoint!r:.60} is none of {', '.join(ENDPOINTS)}"
        if (instead := instead_of(endpoint)) is not None:
            message += f"; {instead}"
        raise ApiError(400, "invalid_value", message, param="endpoint")
    return endpoint


def _window_s(window: str) -> float:
    try:
        found = duration_s(_DURATION.validate_python(window))
    except ValidationError:
        found = 0.0
    if not 0 < found <= WINDOW_S_MAX:
        message = f"completion_window {window!r:.40} is no duration such as 30m or 24h, up to 7d"
        raise ApiError(400, "invalid_value", message, param="completion_window")
    return found


def _metadata(told: Any) -> dict[str, str] | None:
    if told is None:
        return None
    if not isinstance(told, dict):
        raise ApiError(400, "invalid_type", "metadata must be an object", param="metadata")
    if len(told) > PAIRS_MAX:
        message = f"metadata has at most {PAIRS_MAX} pairs"
        raise ApiError(400, "invalid_value", message, param="metadata")
    for key, value in told.items():
        where = f"metadata.{key}"[:100]
        if not isinstance(value, str):
            raise ApiError(400, "invalid_type", f"{where} must be a string", param=where)
        if not key or len(key) > KEY_CHARACTERS_MAX or len(value) > VALUE_CHARACTERS_MAX:
            message = (
                f"{where}: keys have 1 to {KEY_CHARACTERS_MAX} characters, values at most"
                f" {VALUE_CHARACTERS_MAX}"
            )
            raise ApiError(400, "invalid_value", message, param=where)
    return told


ROUTES = (
    web.post("/v1/batches", create),
    web.get("/v1/batches", listed),
    web.get("/v1/batches/{id}", shown),
    web.post("/v1/batches/{id}/cancel", cancel),
)
