"""`/v1/files`: upload, list, show, delete, contents."""

import asyncio
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, BinaryIO

from aiohttp import BodyPartReader, hdrs, web
from aiohttp.http_exceptions import BadHttpMessage

from gateway.files.paging import check_query, page
from gateway.files.store import FILE_BYTES_MAX, FileRecord, FileStore, Upload, new_file_id
from gateway.files.threads import in_thread, opened_in_thread
from gateway.http.errors import ApiError, as_unicode, json_response
from gateway.http.state import GATEWAY, REQUEST_ID, caller_of
from topics.objects import ObjectsError

FILES = web.AppKey("files", FileStore)
PIECE_BYTES = 256 * 1024
FIELD_BYTES_MAX = 1024
FIELDS_MAX = 32
# What stands around the file in the form, heads of its parts and boundaries included, is less.
FORM_BYTES_MAX = 512 * 1024
LIST_MAX = 10_000
EXPIRES_S_MIN, EXPIRES_S_MAX = 3600, 30 * 86400
_FILENAME_CHARACTERS_MAX = 255
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


async def upload(request: web.Request) -> web.Response:
    """Take a file, piece by piece to where files are kept."""
    if request.content_type != "multipart/form-data":
        message = "send the file as multipart/form-data, as OpenAI's clients do"
        raise ApiError(415, "unsupported_media_type", message)
    gateway, files = request.app[GATEWAY], request.app[FILES]
    tenant, s_max = caller_of(request).tenant, gateway.settings.gateway_read_s_max
    if (request.content_length or 0) > FILE_BYTES_MAX + FORM_BYTES_MAX:
        raise _too_large()
    file_id = new_file_id(gateway.clock.now())
    async with opened_in_thread(files.begin, tenant, file_id) as written:
        fields, filename = await _received_in_time(request, written, s_max)
        now = gateway.clock.now()
        _check_purpose(fields.get("purpose"))
        lasts_s = expires_after(_expiry_fields(fields), "expires_after")
        record = FileRecord(
            id=file_id,
            tenant=tenant,
            bytes=written.size,
            created_at=now,
            filename=filename,
            purpose="batch",
            expires_at=None if lasts_s is None else now + lasts_s,
        )
        await in_thread(files.add, record, written)
    return json_response(record.told())


async def _received_in_time(
    request: web.Request, written: Upload, s_max: float
) -> tuple[dict[str, str], str]:
    """Return the form's fields and the file's name. Raises ApiError where there is no file."""
    try:
        fields, filename = await _received(request, written, s_max)
    except TimeoutError as error:
        message = f"nothing came for {s_max:g} s (SHUNTER_GATEWAY_READ_S_MAX)"
        headers = {"Connection": "close"}
        raise ApiError(408, "request_timeout", message, headers=headers) from error
    except (ValueError, BadHttpMessage) as error:
        message = f"the form can't be read: {error!s:.200}"
        raise ApiError(400, "invalid_value", message) from error
    if filename is None:
        raise ApiError(400, "missing_required_parameter", "there is no file", param="file")
    return fields, filename


async def _received(
    request: web.Request, written: Upload, s_max: float
) -> tuple[dict[str, str], str | None]:
    """Return the form's fields and the file's name; its contents are written."""
    fields: dict[str, str] = {}
    filename = None
    form = await request.multipart()
    while True:
        async with asyncio.timeout(s_max):
            part = await form.next()
        if part is None:
            return fields, filename
        if not isinstance(part, BodyPartReader):
            raise ApiError(400, "invalid_value", "a part of the form is a form itself")
        name = part.name or ""
        if name != "file":
            if len(fields) == FIELDS_MAX:
                message = f"the form has more than {FIELDS_MAX} fields beside the file"
                raise ApiError(400, "invalid_value", message)
            fields[name[:100]] = await _field(part, name, s_max)
        elif filename is not None:
            raise ApiError(400, "invalid_value", "there are two files", param="file")
        else:
            plain = _CONTROLS.sub("", as_unicode(part.filename or ""))
            filename = plain[-_FILENAME_CHARACTERS_MAX:] or "file"
            await _copy(part, written, s_max)


async def _copy(part: BodyPartReader, written: Upload, s_max: float) -> None:
    while True:
        async with asyncio.timeout(s_max):
            piece = await part.read_chunk(PIECE_BYTES)
        if not piece:
            return
        if written.size + len(piece) > FILE_BYTES_MAX:
            raise _too_large()
        await in_thread(written.write, piece)


async def _field(part: BodyPartReader, name: str, s_max: float) -> str:
    data = bytearray()
    async with asyncio.timeout(s_max):
        while piece := await part.read_chunk(FIELD_BYTES_MAX):
            data += piece
            if len(data) > FIELD_BYTES_MAX:
                message = f"{name:.60} is longer than {FIELD_BYTES_MAX} bytes"
                raise ApiError(400, "invalid_value", message, param=name[:60])
    return data.decode("utf-8", "replace")


def _too_large() -> ApiError:
    message = f"the file has more than 200 MiB ({FILE_BYTES_MAX:,} bytes); split it"
    return ApiError(413, "file_too_large", message, param="file", headers={"Connection": "close"})


def _check_purpose(purpose: str | None) -> None:
    if purpose is None:
        message = "there is no purpose; it must be batch"
        raise ApiError(400, "missing_required_parameter", message, param="purpose")
    if purpose != "batch":
        message = f"the purpose {purpose!r:.40} is not served; it must be batch"
        raise ApiError(400, "invalid_value", message, param="purpose")


def _expiry_fields(fields: Mapping[str, str]) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    for name in ("anchor", "seconds"):
        value = fields.get(f"expires_after[{name}]")
        if value is not None:
            is_number = value.isascii() and value.isdigit() and len(value) < 9
            found[name] = int(value) if is_number else value
    return found or None


def expires_after(told: Any, name: str) -> int | None:
    """Return after how many seconds a file expires; None for never.

    Args:
        told: ``{"anchor": "created_at", "seconds": n}``, or None.
        name: of the parameter.

    Raises:
        ApiError: it is none of these (400).
    """
    if told is None:
        return None
    if not isinstance(told, dict) or told.get("anchor") != "created_at":
        message = f'{name} must be {{"anchor": "created_at", "seconds": …}}'
        raise ApiError(400, "invalid_value", message, param=name)
    seconds = told.get("seconds")
    if type(seconds) is not int or not EXPIRES_S_MIN <= seconds <= EXPIRES_S_MAX:
        message = f"{name}.seconds must be from {EXPIRES_S_MIN:,} to {EXPIRES_S_MAX:,}"
        raise ApiError(400, "invalid_value", message, param=f"{name}.seconds")
    return seconds


async def listed(request: web.Request) -> web.Response:
    """List the tenant's files."""
    check_query(request, "after", "limit", "order", "purpose")
    files, now = request.app[FILES], request.app[GATEWAY].clock.now()
    tenant, purpose = caller_of(request).tenant, request.query.get("purpose")
    order = request.query.get("order", "desc")
    if order not in {"asc", "desc"}:
        raise ApiError(400, "invalid_value", "order must be asc or desc", param="order")

    def told(file_ids: list[str]) -> dict[str, dict[str, Any]]:
        found = files.get_all(tenant, file_ids, now)
        return {
            each: record.told()
            for each, record in found.items()
            if purpose is None or record.purpose == purpose
        }

    def whole() -> dict[str, Any]:
        ids = files.ids(tenant)
        is_ascending = order == "asc"
        return page(
            request, ids, told, limit_max=LIST_MAX, limit=LIST_MAX, is_ascending=is_ascending
        )

    return json_response(await in_thread(whole))


async def shown(request: web.Request) -> web.Response:
    """Show a file's record."""
    return json_response((await _found(request)).told())


async def deleted(request: web.Request) -> web.Response:
    """Delete a file; a batch that reads it has the contents for itself."""
    record = await _found(request)
    await in_thread(request.app[FILES].delete, record.tenant, record.id)
    return json_response({"id": record.id, "object": "file", "deleted": True})


async def contents(request: web.Request) -> web.StreamResponse:
    """Send a file's contents, or the range of them that is asked for."""
    record = await _found(request)
    start, stop, status = _range(request, record.bytes)
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(stop - start),
        "Accept-Ranges": "bytes",
    }
    if status == HTTPStatus.PARTIAL_CONTENT:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{record.bytes}"
    try:
        file = await in_thread(request.app[FILES].open, record)
    except FileNotFoundError:
        raise _missing(record.id) from None
    try:
        # Before the answer begins, for whatever the store may say.
        piece = await in_thread(_piece, file, start, stop)
        response = web.StreamResponse(status=status, headers=headers)
        response.headers["x-request-id"] = request[REQUEST_ID]
        await response.prepare(request)
        while piece and request.method != hdrs.METH_HEAD:
            await response.write(piece)
            start += len(piece)
            piece = await in_thread(_piece, file, start, stop)
        if start < stop and request.method != hdrs.METH_HEAD:
            raise ConnectionError("the contents end before their length")
        await response.write_eof()
        return response
    finally:
        await in_thread(file.close)


def _range(request: web.Request, size: int) -> tuple[int, int, int]:
    """Return first byte, end and status of the answer to a request for contents."""
    try:
        asked = request.http_range
    except ValueError:
        asked = slice(None, None, 1)
    if asked.start is None and asked.stop is None:
        return 0, size, HTTPStatus.OK
    start, stop, _ = asked.indices(size)
    if start >= stop:
        message = f"the file has {size:,} bytes, and none of that range"
        headers = {"Content-Range": f"bytes */{size}"}
        raise ApiError(416, "invalid_value", message, param="Range", headers=headers)
    return start, stop, HTTPStatus.PARTIAL_CONTENT


def _piece(file: BinaryIO, start: int, stop: int) -> bytes:
    try:
        file.seek(start)
        return file.read(min(PIECE_BYTES, stop - start))
    except FileNotFoundError as error:
        raise ObjectsError(f"the contents are being deleted: {error}") from error


async def _found(request: web.Request) -> FileRecord:
    file_id, now = request.match_info["id"], request.app[GATEWAY].clock.now()
    files, tenant = request.app[FILES], caller_of(request).tenant
    record = await in_thread(files.get, tenant, file_id, now)
    if record is None:
        raise _missing(file_id)
    return record


def _missing(file_id: str) -> ApiError:
    return ApiError(404, "file_not_found", f"there is no file {file_id!r:.100}", param="id")


ROUTES = (
    web.post("/v1/files", upload),
    web.get("/v1/files", listed),
    web.get("/v1/files/{id}", shown),
    web.delete("/v1/files/{id}", deleted),
    web.get("/v1/files/{id}/content", contents),
)
