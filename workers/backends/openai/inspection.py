"""Inspection of a model server: whether it serves, and shows what routers place by."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import orjson

from policies import Option
from policies.config.fleet import OpenAIBackendConfig as Declared
from workers.backends.base import CallError
from workers.backends.openai.backend import PATHS, PROBES
from workers.backends.openai.errors import classify
from workers.backends.openai.server import OpenAIServer, read_body
from workers.backends.openai.server_metrics import BYTES_MAX, SCRAPE_S_MAX, read_load

# Far more than a block of any server's prefix cache (vLLM: 16 tokens, llama.cpp and SGLang: 1).
PROMPT = "The yard sorts each wagon to its own track, and the train waits for the signal. " * 20

# What makes cached tokens visible in an answer's usage, by the prefix of the server's metrics.
_REPORTS = {
    "vllm": "start vLLM with --enable-prompt-tokens-details",
    "sglang": "start SGLang with --enable-cache-report",
}
_CACHES = {
    "vllm": "start vLLM without --no-enable-prefix-caching",
    "sglang": "start SGLang without --disable-radix-cache",
    "llamacpp": "start llama.cpp without --no-cache-prompt",
}
_METRICS = {
    "sglang": "start SGLang with --enable-metrics",
    "llamacpp": "start llama.cpp with --metrics",
}
_PRIORITIES = {
    "vllm": "start vLLM with --scheduling-policy priority",
    "sglang": "start SGLang with --enable-priority-scheduling",
}
# The prefixes of their metrics, and `owned_by` of the models that they serve.
KINDS = ("vllm", "sglang", "llamacpp")


@dataclass(frozen=True, slots=True)
class ServerFinding:
    """One thing that was looked at: ``ok``, ``missing`` (it serves without) or ``fails``."""

    state: Literal["ok", "missing", "fails"]
    what: str
    told: str


async def inspect_server(declared: Declared, options: Sequence[Option]) -> list[ServerFinding]:
    """Return what a server serves and shows of what its pool declares.

    It is asked for some tokens of each variant, and for a prompt twice: the second time the most
    of it should come from its cache.

    Raises:
        BackendSettingError: the key or the authorities can't be read.
    """
    server = OpenAIServer(options[0].pool, declared, 2)
    await server.open()
    try:
        return [found async for found in _findings(server, declared, options)]
    finally:
        await server.close()


async def _findings(
    server: OpenAIServer, declared: Declared, options: Sequence[Option]
) -> AsyncIterator[ServerFinding]:
    page = await _page(server, _origin(declared, "/metrics"))
    kind = next((name for name in KINDS if page and f"\n{name}:" in f"\n{page}"), None)
    kind = kind or await _owner(server, declared)
    yield _of_metrics(page, declared, kind)
    for option in options:
        name = declared.served_name.get(option.variant, option.variant)
        operation = next(each for each in PATHS if each in option.operations)
        try:
            await _asked(server, operation, PROBES[operation] | {"model": name})
        except CallError as error:
            told = f"{error.message} ({error.code}) when asked for {name!r}"
            yield ServerFinding("fails", option.variant, told)
            continue
        yield ServerFinding("ok", option.variant, f"serves {operation} as {name!r}")
        if operation in ("chat", "completions"):
            yield await _of_cache(server, option.variant, name, operation, kind)
            if declared.priority is not None:
                yield await _of_priority(server, option.variant, name, operation, kind)


def _of_metrics(page: str | None, declared: Declared, kind: str | None) -> ServerFinding:
    names = {str(field): name for field, name in declared.metrics_names.items()}
    try:
        load = None if page is None else read_load(page, names)
    except ValueError as error:
        return ServerFinding("missing", "metrics", f"they can't be read: {error}")
    if load is not None:
        return ServerFinding(
            "ok", "metrics", "running, queued and KV memory are read from the server"
        )
    hint = _METRICS.get(kind or "", "name its page in metrics_url and its metrics in metrics_names")
    return ServerFinding("missing", "metrics", f"the load of other clients is not seen: {hint}")


async def _of_cache(
    server: OpenAIServer, variant: str, name: str, operation: str, kind: str | None
) -> ServerFinding:
    """Return what the second of two equal prompts says of cached tokens."""
    body = _prompt(operation) | {"model": name, "max_tokens": 1}
    try:
        await _asked(server, operation, body)
        answer = await _asked(server, operation, body)
    except CallError as error:
        return ServerFinding("missing", f"{variant}, cache", f"{error.message} ({error.code})")
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    if not isinstance(details, dict) or details.get("cached_tokens") is None:
        told = "usage.prompt_tokens_details is not told, so that no turn counts as cached: "
        either = " (vLLM), or with ".join(each.partition(" with ")[2] for each in _REPORTS.values())
        hint = _REPORTS.get(kind or "", f"start the server with {either} (SGLang)")
        return ServerFinding("missing", f"{variant}, cache", told + hint)
    if not details["cached_tokens"]:
        hint = _CACHES.get(kind or "", "let the server cache prefixes")
        told = f"an equal prompt was computed again: {hint}"
        return ServerFinding("missing", f"{variant}, cache", told)
    told = f"{details['cached_tokens']} of {usage.get('prompt_tokens')} tokens came from the cache"
    return ServerFinding("ok", f"{variant}, cache", told)


async def _of_priority(
    server: OpenAIServer, variant: str, name: str, operation: str, kind: str | None
) -> ServerFinding:
    what = f"{variant}, priority"
    try:
        await _asked(server, operation, PROBES[operation] | {"model": name, "priority": 1})
    except CallError as error:
        hint = _PRIORITIES.get(kind or "", "or take `priority` out of the pool's backend")
        return ServerFinding("fails", what, f"{error.message} with a priority: {hint}")
    return ServerFinding("ok", what, "a request may have a priority")


def _prompt(operation: str) -> dict[str, Any]:
    if operation == "chat":
        return {"messages": [{"role": "user", "content": PROMPT}]}
    return {"prompt": PROMPT}


async def _asked(server: OpenAIServer, operation: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return an answer. Raises CallError."""
    try:
        async with (
            asyncio.timeout(server.first_token_s_max),
            server.post(PATHS[operation], body) as response,
        ):
            data = await read_body(response, BYTES_MAX)
    except TimeoutError as error:
        message = f"the server gave no answer within {server.first_token_s_max:g} s"
        raise CallError("timeout", message, retry="elsewhere") from error
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        found = None
    if response.status != 200:
        raise classify(response.status, found, response.headers, 0.0)
    if not isinstance(found, dict):
        raise CallError("bad_answer", "the server's answer is no JSON object", retry="elsewhere")
    return found


async def _page(server: OpenAIServer, url: str) -> str | None:
    try:
        async with asyncio.timeout(SCRAPE_S_MAX), server.get(url) as response:
            if response.status != 200:
                return None
            return (await read_body(response, BYTES_MAX)).decode("utf-8", "replace")
    except (CallError, TimeoutError):
        return None


async def _owner(server: OpenAIServer, declared: Declared) -> str | None:
    """Return what kind of server it is by who owns its models; None if it doesn't say."""
    page = await _page(server, declared.base_url.rstrip("/") + "/models")
    try:
        models = orjson.loads(page or "null")
        owners = {str(each.get("owned_by")) for each in models["data"]}
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
        return None
    return next((kind for kind in KINDS if kind in owners), None)


def _origin(declared: Declared, path: str) -> str:
    parts = urlsplit(declared.base_url)
    return declared.metrics_url or f"{parts.scheme}://{parts.netloc}{path}"
