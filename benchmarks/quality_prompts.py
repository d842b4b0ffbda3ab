"""Prompts for the quality watch: sentences to label, and questions to answer in a few words."""

import random
from typing import Any, NamedTuple

COUNT_MAX = 300
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


_LABELLED = """\
Review: The mug came quickly and keeps my tea hot for hours. I love it.
Sentiment: positive

Review: The clock was broken when it came. I want my money back.
Sentiment: negative

Review: These shoes fell apart after a week.
Sentiment: negative

Review: A very good book, my children read it every evening.
Sentiment: positive

"""
_ANSWERED = """\
Question: Name 3 things that one finds in a kitchen.
Answer: a stove, a sink and a table

Question: What can go wrong in a shop? Give 2 examples.
Answer: goods are sold out and customers have to wait

"""


class Prompt(NamedTuple):
    """A prompt, how its answers are compared, and the tokens that they may have."""

    compare: str
    text: str
    tokens: int

    def body(self) -> dict[str, Any]:
        """Return the body of a greedy completion. The model is one that was not trained to chat."""
        return {
            "prompt": self.text,
            "max_tokens": self.tokens,
            "temperature": 0,
            "seed": 1,
            "stop": ["\n"],
        }


def prompts(count: int) -> list[Prompt]:
    """Return so many prompts of each kind, at most COUNT_MAX, all different, always the same."""
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
    return [
        Prompt("labels", f"{_LABELLED}Review: {text}\nSentiment:", 3)
        for text in draw.sample(labels, COUNT_MAX)[:count]
    ] + [
        Prompt("greedy", f"{_ANSWERED}Question: {text}\nAnswer:", 12)
        for text in draw.sample(questions, COUNT_MAX)[:count]
    ]
