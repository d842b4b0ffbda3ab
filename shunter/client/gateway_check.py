"""The gateway tried through OpenAI's own client, as its users would."""

import importlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from gateway.exchange.fleet_state import FleetState
from gateway.server import serving
from shunter.console import UserError
from topics import Settings

ANSWER_S_MAX = 60.0
# A router refuses a model that is not there within milliseconds; it may be taking its partitions.
REFUSAL_S_MAX = 10.0
_HI: list[dict[str, Any]] = [{"role": "user", "content": "Say hello."}]
_OWN = {"gateway_host": "127.0.0.1", "gateway_port": 0, "gateway_keys": None}
_OWN |= {"gateway_tls_cert": None}


async def check_gateway(settings: Settings, tell: Callable[[str, str], object]) -> bool:
    """Serve on a free port of this machine, and try it; return whether all went well.

    Args:
        settings: those of the gateway, but for address, keys and TLS.
        tell: receives what was tried, and what came of it.

    Raises:
        UserError: the client is not installed.
        AdminError: Kafka can't be reached, or topics are missing.
    """
    try:
        openai: Any = importlib.import_module("openai")
    except ImportError as error:
        raise UserError("OpenAI's client is not installed: pip install 'shunter[check]'") from error
    good = True
    async with serving(settings.model_copy(update=_OWN)) as (gateway, port):
        client = openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1",
            api_key="check",
            max_retries=0,
            timeout=ANSWER_S_MAX,
        )
        async with client:
            async for what, found, is_good in _tried(client, openai, gateway.fleet):
                tell(what, found)
                good = good and is_good
    return good


async def _tried(
    client: Any, openai: Any, fleet: FleetState
) -> AsyncIterator[tuple[str, str, bool]]:
    async def models() -> str:
        return ", ".join([model.id async for model in client.models.list()]) or "none"

    yield await _try("models", models(), openai)
    unknown = await _try("a model that is not there", _refused(client, openai), openai)
    yield unknown
    if not unknown[2]:
        # What no router takes up would be waited for in vain.
        return
    able = [
        name
        for name, options in sorted(fleet.models().items())
        if any("chat" in option.operations for option in options)
        and fleet.backlog_s(name) is not None
    ]
    if not able:
        yield "chat", "no live pool serves a chat model, so no answer was tried", False
        return
    model = able[0]

    async def answer() -> str:
        raw = await client.chat.completions.with_raw_response.create(
            model=model, messages=_HI, max_tokens=1
        )
        raw.parse()
        told = raw.headers
        return f"{model} at {told['x-shunter-pool']} for ${told['x-shunter-cost-usd']}"

    async def stream() -> str:
        chunks = await client.chat.completions.create(
            model=model, messages=_HI, max_tokens=1, stream=True
        )
        return f"{len([chunk async for chunk in chunks])} chunks"

    yield await _try("an answer", answer(), openai)
    yield await _try("a stream", stream(), openai)


async def _refused(client: Any, openai: Any) -> str:
    try:
        await client.chat.completions.create(
            model="no-such-model", messages=_HI, timeout=REFUSAL_S_MAX
        )
    except openai.NotFoundError as error:
        return f"{error.status_code} {error.code}"
    except openai.APITimeoutError as error:
        raise UserError(
            f"no router has answered within {REFUSAL_S_MAX:g} s; does a `shunter router` run?"
        ) from error
    raise UserError("a model that is not there was answered")


async def _try(what: str, work: Awaitable[str], openai: Any) -> tuple[str, str, bool]:
    try:
        return what, await work, True
    except (openai.OpenAIError, UserError) as error:
        return what, f"failed: {error}", False
