"""The requests of a demo on real models, and what came of each in words."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shunter.client.answers import text_of
from shunter.demo.real_fleet import EMBEDDING, MODERATION

OUTPUT_TOKENS = 40
WINDOW = "120s"
_QUESTIONS = (
    "In one sentence: what does a shunting engine do?",
    "Name three things that stand on a railway yard.",
    "Why are wagons sorted by their destination?",
)
_SENTENCES = (
    "The engine sorts wagons.",
    "A locomotive shunts rail cars.",
    "Cut the onions and fry them.",
)
_JUDGED = (
    "How do I sort wagons by where they go?",
    "I want to hurt myself and see no reason to go on.",
    "People of that religion are vermin and should be driven out of the country.",
)


def real_requests(model: str) -> list[dict[str, Any]]:
    """Return chats, one of them streamed, a text, embeddings and moderations."""
    sampling = {"model": model, "max_tokens": OUTPUT_TOKENS, "temperature": 0}
    chats: list[dict[str, Any]] = [
        {
            "id": f"chat-{number}",
            "body": sampling | {"messages": [{"role": "user", "content": question}]},
        }
        for number, question in enumerate(_QUESTIONS)
    ]
    chats[-1]["body"]["stream"] = True
    text = {
        "id": "text-0",
        "url": "/v1/completions",
        "body": sampling | {"prompt": "The wagons were sorted by"},
    }
    embeddings = [
        {
            "id": f"embedding-{number}",
            "url": "/v1/embeddings",
            "body": {"model": EMBEDDING, "input": sentence},
        }
        for number, sentence in enumerate(_SENTENCES)
    ]
    moderations = [
        {
            "id": f"moderation-{number}",
            "url": "/v1/moderations",
            "body": {"model": MODERATION, "input": judged},
        }
        for number, judged in enumerate(_JUDGED)
    ]
    # A small machine may take a while over its first tokens.
    patient = {"completion_window": WINDOW, "slo": {"ttft_ms": 60_000}}
    return [each | patient for each in (*chats, text)] + embeddings + moderations


def answer_of(body: Mapping[str, Any]) -> str:
    """Return an answer in a line: the text, what was flagged, or the size of a vector."""
    if "choices" in body:
        return " ".join(text_of(body).split())
    first = (body.get("results") or body["data"])[0]
    if "embedding" in first:
        return f"a vector of {len(first['embedding'])} numbers"
    found = first["category_scores"]
    flags = [name for name, is_flagged in first["categories"].items() if is_flagged]
    none = ", ".join(name for name, score in found.items() if score is None)
    told = ", ".join(f"{name} {found[name]:.2f}" for name in flags) or "nothing flagged"
    return f"{told}; not judged: {none}"


def likenesses(bodies: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, float]]:
    """Yield each two sentences that were embedded, and the cosine of their vectors."""
    vectors = [
        (sentence, bodies[name]["data"][0]["embedding"])
        for number, sentence in enumerate(_SENTENCES)
        if (name := f"embedding-{number}") in bodies
    ]
    for (one, a), (other, b) in itertools.combinations(vectors, 2):
        yield one, other, _cosine(a, b)


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / (math.hypot(*a) * math.hypot(*b))
