"""A model server that answers at once: ``python -m benchmarks.contestants.instant_server PORT``.

A text of the prompt ``hold`` is one piece and then nothing until the client leaves; each piece has
the time at which it was written, in epoch seconds.
"""

import asyncio
import sys
import time
from typing import Any

import orjson
from aiohttp import web

USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}


async def chat(request: web.Request) -> web.StreamResponse:
    """Answer a chat completion, as a stream if that is asked for."""
    body = orjson.loads(await request.read())
    same = {"id": "c", "created": 1, "model": body["model"]}
    if not body.get("stream"):
        message = {"role": "assistant", "content": repr(time.time())}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        answer = same | {"object": "chat.completion", "choices": choices, "usage": USAGE}
        return web.json_response(answer)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)

    async def send(delta: Any, finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        event = same | {"object": "chat.completion.chunk", "choices": [choice]}
        await response.write(b"data: " + orjson.dumps(event) + b"\n\n")

    await send({"role": "assistant", "content": repr(time.time())})
    if body["messages"][-1]["content"] == "hold":
        await asyncio.sleep(3600)
    await send({}, "stop")
    last = same | {"object": "chat.completion.chunk", "choices": [], "usage": USAGE}
    await response.write(b"data: " + orjson.dumps(last) + b"\n\ndata: [DONE]\n\n")
    return response


async def models(_request: web.Request) -> web.Response:
    """List the one model, for whoever probes."""
    return web.json_response({"object": "list", "data": [{"id": "served", "object": "model"}]})


def main() -> None:
    """Serve on the port given."""
    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", chat), web.get("/v1/models", models)])
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, handler_cancellation=True)


if __name__ == "__main__":
    main()
