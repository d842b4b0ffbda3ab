"""The gateway beside a demo that stays up, and lines of Python that ask it."""

import asyncio
import contextlib
import socket
from collections.abc import Callable

import aiohttp

from shunter.demo.system import System
from topics.embedded_broker.settings import HOST, free_port

# Of the gateway's own default; another is taken where that one is in use.
PORT = 8400
READY_S_MAX, LOOK_S = 20.0, 0.1
MODEL = "llama-3.1-8b"


async def open_door(system: System, say: Callable[[str], object]) -> str:
    """Start a gateway; return its URL once it answers, or, having said so, none if it does not."""
    port = PORT if _is_free(PORT) else free_port()
    system.start("gateway", ["gateway", "--host", HOST, "--port", str(port)])
    url = f"http://{HOST}:{port}"
    async with aiohttp.ClientSession() as asking:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_S_MAX):
                while not await _is_ready(asking, url):
                    system.tend()
                    await asyncio.sleep(LOOK_S)
                return url
    say(f"The gateway did not answer within {READY_S_MAX:g} s; gateway.log says why")
    return ""


async def _is_ready(asking: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with asking.get(f"{url}/readyz") as answer:
            return answer.ok
    except aiohttp.ClientError:
        return False


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except OSError:
            return False
    return True


def lines_for(url: str, model: str = MODEL) -> list[str]:
    """Return three lines of Python that ask a gateway by OpenAI's client and print the answer."""
    # Text completions, since the lines of a chat would not fit into 80 columns.
    return [
        "from openai import OpenAI",
        f'door = OpenAI(base_url="{url}/v1", api_key="any").completions',
        f'print(door.create(model="{model}", prompt="Which track?").choices[0].text)',
    ]
