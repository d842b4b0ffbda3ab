"""Prompts for the quality watch: sentences to label, and questions to answer in a few words."""

import random
from typing import Any, NamedTuple

_GOODS = ("kettle", "lamp", "bicycle", "phone", "jacket", "camera", "chair", "printer", "tent")
_SHOPS = ("arrived", "was delivered", "came", "was sent", "got here")
_WORDS = (
    "two days early and works perfectly",
    "broken and nobody answers my letters",
    "in time and looks better than on the picture",
    "late, scratched and without its cable",
    "quickly and is a pleasure to use",
    "with a crack and smells of glue",
    "as promised and my family loves it",
    "a month late and stopped after an hour",
)
_TAILS = ("", " I would buy it again.", " Never again.", " The price was fair.", " I am surprised.")
_TOPICS = (
    "a railway yard",
    "a harbour",
    "a library",
    "a bakery",
    "a school",
    "a farm",
    "a hospital",
    "a theatre",
    "an airport",
    "a museum",
)
_ASKED = (
    "Name {n} things that one finds in {topic}.",
    "Who works in {topic}? Name {n} trades.",
    "Write {n} rules for visitors of {topic}.",
    "What can go wrong in {topic}? Give {n} examples.",
    "Explain in {n} sentences what {topic} is for.",
)


class Prompt(NamedTuple):
    """A prompt, how its answers are compared, and the tokens that they may have."""

    compare: str
    text: str
    tokens: int

    def body(self) -> dict[str, Any]:
        """Return the body of a greedy chat request."""
        messages = [{"role": "user", "content": self.text}]
        return {"messages": messages, "max_tokens": self.tokens, "temperature": 0, "seed": 1}


def prompts(count: int) -> list[Prompt]:
    """Return so many prompts of each kind, all different, the same on each call."""
    draw = random.Random(20)
    labels = [
        f"The {good} {shop} {words}.{tail}"
        for good in _GOODS
        for shop in _SHOPS
        for words in _WORDS
        for tail in _TAILS
    ]
    questions = [
        form.format(n=n, topic=topic) for form in _ASKED for topic in _TOPICS for n in range(2, 9)
    ]
    asked = "Is this review positive or negative? Answer with one word.\n\n"
    return [Prompt("labels", asked + text, 4) for text in draw.sample(labels, count)] + [
        Prompt("greedy", text, 16) for text in draw.sample(questions, count)
    ]
