"""The pages for people: what this is, and the API's description."""

from typing import Any

from aiohttp import web

from gateway.http.errors import json_response
from gateway.http.meter import CONTENT_TYPE
from gateway.http.state import GATEWAY

_STYLE = "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:3rem auto;padding:0 1rem}"
_STYLE += "pre{background:#f3f3f3;padding:1rem;overflow:auto}td{padding:.1rem 1rem .1rem 0}"
# Nothing of the page comes from elsewhere, and it runs no script.
_SAFE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_INDEX = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Shunter gateway</title>
<style>{_STYLE}</style><h1>Shunter gateway</h1>
<p>An OpenAI-compatible API in front of <b>Shunter</b>, a router that runs each request on the
cheapest hardware that is likely to meet its deadline and keeps its constraints.</p>
<pre>from openai import OpenAI
client = OpenAI(base_url="http://HOST:PORT/v1", api_key="...")
print(client.models.list())</pre>
<p><a href="/docs">Endpoints</a>, <a href="/openapi.json">OpenAPI</a>,
<a href="/healthz">health</a>, <a href="/readyz">readiness</a>, <a href="/metrics">metrics</a></p>
"""
_BODIES = {
    "/v1/chat/completions": ("Answer a conversation", ["model", "messages"]),
    "/v1/completions": ("Continue a text", ["model", "prompt"]),
    "/v1/embeddings": ("Embed texts", ["model", "input"]),
    "/v1/moderations": ("Classify texts", ["input"]),
}
_READS = {
    "/v1/models": "List the models that are served",
    "/v1/models/{id}": "Describe one model",
    "/v1/requests/{id}": "Show the result of a request of this tenant, without its texts",
}


async def index(_request: web.Request) -> web.Response:
    """Say what this is."""
    return web.Response(text=_INDEX, content_type="text/html", headers=_SAFE)


async def docs(_request: web.Request) -> web.Response:
    """List the endpoints, from the description for programs."""
    rows = "".join(
        f"<tr><td><code>{method.upper()} {path}</code></td><td>{each['summary']}</td></tr>"
        for path, methods in description()["paths"].items()
        for method, each in methods.items()
    )
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Shunter gateway: endpoints'
        f"</title><style>{_STYLE}</style><h1>Endpoints</h1><table>{rows}</table>"
        '<p>For programs: <a href="/openapi.json">OpenAPI</a>. Bodies and answers are those of'
        " OpenAI's API; constraints go into <code>shunter</code> or <code>X-Shunter-*</code>.</p>"
    )
    return web.Response(text=text, content_type="text/html", headers=_SAFE)


async def openapi(_request: web.Request) -> web.Response:
    """Return the description for programs."""
    return json_response(description())


async def metrics(request: web.Request) -> web.Response:
    """Return the counts, for Prometheus."""
    body = request.app[GATEWAY].meter.page()
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


def description() -> dict[str, Any]:
    """Return the OpenAPI description of the endpoints."""
    error = {"$ref": "#/components/responses/Error"}
    paths: dict[str, dict[str, Any]] = {}
    for path, (summary, required) in _BODIES.items():
        schema = {"type": "object", "required": required, "additionalProperties": True}
        paths[path] = {
            "post": {
                "summary": summary,
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": schema}},
                },
                "responses": {
                    "200": {"description": "The answer, or its stream"},
                    "default": error,
                },
            }
        }
    for path, summary in _READS.items():
        read: dict[str, Any] = {
            "summary": summary,
            "responses": {"200": {"description": "Found"}, "default": error},
        }
        if "{id}" in path:
            string = {"type": "string"}
            read["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": string}]
        paths[path] = {"get": read}
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
