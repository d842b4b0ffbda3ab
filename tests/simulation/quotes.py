"""Quotes in a simulation: questions on both topics, and requests that took an offer."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import orjson
from stream_cases import MODEL, START

from simulation.requests import POOLS
from streams.engine.log import Outgoing
from topics import parse_request
from topics.records.quote_token import QuoteTerms, request_digest, token_of

if TYPE_CHECKING:
    from simulation.aftermath import Aftermath
    from simulation.world import World

SECRET = "between the routers"  # noqa: S105 - of the simulation
COUNT = 3
# A tenth of a second of the cheapest device costs ten thousand times the first, and a billionth of
# the second.
PRICES = (1, 10**12)


async def publish_quotes(world: "World") -> None:
    """Ask on both topics, and publish requests with offers that were taken."""
    rng = random.Random(world.seed * 32_452_843 + 7)
    for number in range(COUNT):
        await asyncio.sleep(rng.uniform(0.0, 3.0))
        _ask(world, rng, number)
        await asyncio.sleep(rng.uniform(0.0, 1.0))
        _take(world, rng, f"quoted-{number}")


def _ask(world: "World", rng: random.Random, number: int) -> None:
    body = {"messages": [{"role": "user", "content": "which track?"}]}
    own = {"model": MODEL, "body": body, "task": rng.choice(("chat", "summarization"))}
    c = world.catalogue
    asked = {"id": f"question-{number}", "requests": [own | {"id": f"asked-{number}"}]}
    direct = own | {"id": f"direct-{number}", "quote": True}
    for topic, value in ((c.quotes, asked), (c.requests, direct)):
        key = str(value["id"]).encode()
        partition = 0 if topic == c.quotes else rng.randrange(world.catalogue.partitions)
        world.cluster.publish(Outgoing(topic, key, orjson.dumps(value), [], partition))
        world.questions.add(key.decode())
        world.questions_left += 1


def _take(world: "World", rng: random.Random, name: str) -> None:
    task = rng.choice(("chat", "summarization"))
    expected = world.workload.add(rng, name, {"task": task, "tenant": "a"}, POOLS)
    digest = request_digest(parse_request(expected.value, bytes_max=100_000))
    price = world.prices[name] = rng.choice(PRICES)
    terms = QuoteTerms(digest, "auto", None, expected.deadline_s, 0.9, price, START + 1e6)
    token = token_of(SECRET.encode(), terms)
    expected.value = orjson.dumps(orjson.loads(expected.value) | {"quote_id": token})
    world._request(name, world.workload.homes[name])


def check_quotes(after: "Aftermath") -> Iterator[str]:
    """Each question is answered once and evidenced once; nobody pays more than was quoted."""
    world, c = after.world, after.catalogue
    answers = Counter((r.key or b"").decode() for r in after.records(c.quote_answers))
    evidence = Counter(e["request_id"] for e, _ in after.evidence if e["step"] == "quoted")
    for name in sorted(world.questions | answers.keys()):
        if (answers[name], evidence[name]) != (1, 1) or name not in world.questions:
            yield f"{name}: {answers[name]} answers, {evidence[name]} times evidenced"
    for name, result in after.results:
        price, cost = world.prices.get(name), result["cost"]
        if price is not None and cost is not None and round(cost["usd"] * 1e9) > price:
            yield f"{name}: pays {cost['usd']} USD, of {price} nano-dollars that were quoted"
    for step, _ in after.evidence:
        price = world.prices.get(step["request_id"])
        if price is None or step["step"] != "executed":
            continue
        charge = step["charge"]
        if charge["quoted_nano_usd"] != price or charge["charged_nano_usd"] != min(
            price, charge["cost_nano_usd"]
        ):
            yield f"{step['request_id']}: charged {charge}, quoted {price}"
