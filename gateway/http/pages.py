"""The pages for people: what this is, and the API's description."""

import html
from typing import Any

from aiohttp import web

from gateway.http.errors import json_response
from gateway.http.meter import CONTENT_TYPE
from gateway.http.state import GATEWAY

_STYLE = "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:3rem auto;padding:0 1rem}"
_STYLE += "pre{background:#f3f3f3;padding:1rem;overflow:auto}td{padding:.1rem 1rem .1rem 0}"
_STYLE += "code{white-space:nowrap}"
# Nothing of the page comes from elsewhere, and it runs no script.
_SAFE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_INDEX = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Shunter gateway</title>
<style>%(style)s</style><h1>Shunter gateway</h1>
<p>An OpenAI-compatible API in front of <b>Shunter</b>, a router that runs each request on the
cheapest hardware that is likely to meet its deadline and keeps its constraints.</p>
<pre>from openai import OpenAI
client = OpenAI(base_url="%(url)s/v1", api_key="%(key)s")
print(client.models.list())</pre>
<p><a href="/docs">Endpoints</a>, <a href="/openapi.json">OpenAPI</a>,
<a href="/healthz">health</a>, <a href="/readyz">readiness</a>, <a href="/metrics">metrics</a></p>
"""
_JSON, _FORM = "application/json", "multipart/form-data"
# By path and method: what it does, and for a body its type and the fields that it must have.
_Described = dict[tuple[str, str], tuple[str, str | None, list[str]]]
_MODELS: _Described = {
    ("/v1/chat/completions", "post"): ("Answer a conversation", _JSON, ["model", "messages"]),
    ("/v1/responses", "post"): ("Answer a conversation, as a response", _JSON, ["model", "input"]),
    ("/v1/completions", "post"): ("Continue a text", _JSON, ["model", "prompt"]),
    ("/v1/embeddings", "post"): ("Embed texts", _JSON, ["model", "input"]),
    ("/v1/moderations", "post"): ("Classify texts", _JSON, ["input"]),
    ("/v1/models", "get"): ("List the models that are served", None, []),
    ("/v1/models/{id}", "get"): ("Describe one model", None, []),
    ("/v1/requests/{id}", "get"): (
        "Show the result of a request of this tenant, without its texts",
        None,
        [],
    ),
}
_BATCH_FIELDS = ["input_file_id", "endpoint", "completion_window"]
_FILES: _Described = {
    ("/v1/files", "post"): ("Upload the input of a batch", _FORM, ["file", "purpose"]),
    ("/v1/files", "get"): ("List files", None, []),
    ("/v1/files/{id}", "get"): ("Describe a file", None, []),
    ("/v1/files/{id}", "delete"): ("Delete a file", None, []),
    ("/v1/files/{id}/content", "get"): ("Show what is in a file", None, []),
    ("/v1/batches", "post"): ("Run the lines of a file", _JSON, _BATCH_FIELDS),
    ("/v1/batches", "get"): ("List batches", None, []),
    ("/v1/batches/{id}", "get"): ("Show how far a batch is", None, []),
    ("/v1/batches/{id}/cancel", "post"): ("Cancel a batch", None, []),
}


async def index(request: web.Request) -> web.Response:
    """Say what this is."""
    has_keys = request.app[GATEWAY].settings.gateway_keys is not None
    told = {
        "style": _STYLE,
        "url": html.escape(f"{request.scheme}://{request.host}"),
        "key": "YOUR KEY" if has_keys else "any",
    }
    return web.Response(text=_INDEX % told, content_type="text/html", headers=_SAFE)


async def docs(request: web.Request) -> web.Response:
    """List the endpoints, from the description for programs."""
    rows = "".join(
        f"<tr><td><code>{method.upper()} {path}</code></td><td>{each['summary']}</td></tr>"
        for path, methods in _description_of(request)["paths"].items()
        for method, each in methods.items()
    )
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Shunter gateway: endpoints'
        f"</title><style>{_STYLE}</style><h1>Endpoints</h1><table>{rows}</table>"
        '<p>For programs: <a href="/openapi.json">OpenAPI</a>. Bodies and answers are those of'
        " OpenAI's API; constraints go into <code>shunter</code> or <code>X-Shunter-*</code>.</p>"
    )
    return web.Response(text=text, content_type="text/html", headers=_SAFE)


async def openapi(request: web.Request) -> web.Response:
    """Return the description for programs."""
    return json_response(_description_of(request))


def _description_of(request: web.Request) -> dict[str, Any]:
    return description(has_files=request.app[GATEWAY].settings.gateway_files is not None)


async def metrics(request: web.Request) -> web.Response:
    """Return the counts, for Prometheus."""
    body = request.app[GATEWAY].meter.page()
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


def description(*, has_files: bool) -> dict[str, Any]:
    """Return the OpenAPI description of the endpoints, with files and batches or without."""
    paths: dict[str, dict[str, Any]] = {}
    for (path, method), told in (_MODELS | (_FILES if has_files else {})).items():
        paths.setdefault(path, {})[method] = _operation(path, *told)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Shunter gateway", "version": "1"},
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "responses": {
                "Error": {
                    "description": "What was wrong",
                    "content": {
                        "application/json": {"schema": {"type": "object", "required": ["error"]}}
                    },
                }
            },
        },
    }


def _operation(path: str, summary: str, body: str | None, required: list[str]) -> dict[str, Any]:
    error = {"$ref": "#/components/responses/Error"}
    told: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": "The answer"}, "default": error},
    }
    if body is not None:
        schema = {"type": "object", "required": required, "additionalProperties": True}
        told["requestBody"] = {"required": True, "content": {body: {"schema": schema}}}
    if "{id}" in path:
        string = {"type": "string"}
        told["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": string}]
    return told
