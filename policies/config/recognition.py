"""Recognition: rules by which a request that names no class gets one."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import inf
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, Field, model_validator

from policies.config.schema import Declaration, did_you_mean

Phrase = Annotated[str, Field(min_length=2, max_length=80)]
Count = Annotated[int, Field(strict=True, ge=0)]


class RecognitionRule(Declaration):
    """A class, and what a request of it looks like: all that is given has to hold.

    Phrases are sought in the instructions (system and developer messages) and at both ends of what
    the user says last, without regard to case, as whole words; ``_`` stands for some words.
    """

    task: str
    """The class that such a request is of."""
    confidence: Annotated[float, Field(gt=0, lt=1)]
    """How sure that is; recorded with the tag."""
    says: tuple[Phrase, ...] = ()
    """Phrases of which one has to be there."""
    unless: tuple[Phrase, ...] = ()
    """Phrases of which none may be there."""
    has_code: bool | None = None
    """Whether a block or line of code has to be there, or not to be."""
    tools: bool | None = None
    """Whether the request has to have tools, or none."""
    input_tokens_min: Count | None = None
    input_tokens_max: Count | None = None
    output_tokens_min: Count | None = None
    """Of the request's own limit on the reply; without a limit this doesn't hold."""
    output_tokens_max: Count | None = None
    temperature_min: Annotated[float, Field(ge=0)] | None = None
    """Of the request's own; without one this doesn't hold."""
    loosens: bool = False
    """Whether the class's own SLO, deadline and quality hold, though they may ask for less than
    those of the default class. False: of each the stricter holds."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        asked = self.model_dump(exclude={"task", "confidence", "loosens"}, exclude_defaults=True)
        if not asked:
            raise ValueError("must say what a request of the class looks like")
        return self

    @cached_property
    def said(self) -> "Phrases | None":
        """All phrases of ``says``, None if there are none."""
        return Phrases(self.says) if self.says else None

    @cached_property
    def ranges(self) -> tuple[tuple[str, float, float], ...]:
        """Return each count of a request that is bounded, with its least and its most."""
        limits = (
            ("input_tokens", self.input_tokens_min, self.input_tokens_max),
            ("output_tokens", self.output_tokens_min, self.output_tokens_max),
            ("temperature", self.temperature_min, None),
        )
        return tuple(
            (name, -inf if least is None else least, inf if most is None else most)
            for name, least, most in limits
            if (least, most) != (None, None)
        )

    @cached_property
    def unsaid(self) -> "Phrases | None":
        """All phrases of ``unless``, None if there are none."""
        return Phrases(self.unless) if self.unless else None


# Of which a text with lines of code has one.
CODE_WORDS = frozenset(b"def class import public function select create const let var".split())

# `_` in a phrase: up to four words.
_SOME_WORDS = r"(?:\W+\w+){0,4}?\W+"


def pattern_of(phrases: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of the phrases as whole words.

    It holds no nested repetition, so that no text makes it slow.
    """
    each = [_SOME_WORDS.join(_words(part) for part in phrase.split("_")) for phrase in phrases]
    return re.compile(rf"(?<!\w)(?:{'|'.join(each)})(?!\w)", re.IGNORECASE)


# All that is no part of a word to a space, capitals to small letters.
_SPACED = bytes(
    ord(chr(code).lower()) if chr(code).isalnum() or chr(code) == "_" else 32 for code in range(128)
) + bytes(128)


def words_in(text: str, sought: frozenset[bytes] | None = None) -> frozenset[bytes] | None:
    """Return the words of a text of ASCII, in small letters; of those sought alone, if given.

    None beyond ASCII, where letters that differ in lower case may be equal all the same.
    """
    if not text.isascii():
        return None
    words = text.encode("ascii").translate(_SPACED).split()
    return frozenset(words) if sought is None else sought.intersection(words)


class Phrases:
    """Phrases that are sought together, as whole words and without regard to case.

    ``words`` are all of those that are looked up among a text's.
    """

    def __init__(self, phrases: Sequence[str]) -> None:
        self._any = pattern_of(phrases)
        # By the longest of its words, which few texts have.
        self._by_word: dict[bytes, list[tuple[frozenset[bytes], re.Pattern[str]]]] = {}
        others: list[str] = []
        for phrase in phrases:
            if words := words_in(phrase.replace("_", " ")):
                sought = self._by_word.setdefault(max(words, key=lambda w: (len(w), w)), [])
                sought.append((words, pattern_of([phrase])))
            else:
                others.append(phrase)
        self._longest = frozenset(self._by_word)
        each = (words for of_one in self._by_word.values() for words, _ in of_one)
        self.words = frozenset().union(*each)
        self._others = pattern_of(others) if others else None

    def are_in(self, text: str, words: frozenset[bytes] | None) -> bool:
        """Return whether one of them is in a text, of whose `words_in` those sought are given."""
        # The one pattern takes 130 us for a prompt that has none of 60 phrases; words are soon
        # looked up.
        if words is None:
            return self._any.search(text) is not None
        for longest in self._longest & words:
            for needed, pattern in self._by_word[longest]:
                if needed <= words and pattern.search(text) is not None:
                    return True
        return self._others is not None and self._others.search(text) is not None


def _words(part: str) -> str:
    return r"\s+".join(re.escape(word) for word in part.split())


def sought_words(rules: Sequence[RecognitionRule]) -> frozenset[bytes]:
    """Return the words that any of the rules looks for in a text."""
    phrases = [p for rule in rules for p in (rule.said, rule.unsaid) if p is not None]
    return CODE_WORDS.union(*(each.words for each in phrases))


def unknown_tasks(
    rules: Sequence[RecognitionRule], classes: Mapping[str, object]
) -> list[tuple[tuple[str | int, ...], Any, str]]:
    """Return path, value and message of each rule whose class is none of these."""
    return [
        (
            ("recognize", index, "task"),
            rule.task,
            f"not a class of the policy; {did_you_mean(rule.task, classes)}",
        )
        for index, rule in enumerate(rules)
        if rule.task not in classes
    ]


C = TypeVar("C", bound=BaseModel)


def stricter(one: C, other: C) -> C:
    """Return a class of requests, and of all that it grants the stricter of its and another's."""

    def least(name: str) -> Any:
        given = [v for v in (getattr(one, name), getattr(other, name)) if v is not None]
        return min(given, default=None)

    limits = (
        *("ttft_ms", "tpot_ms", "deadline_s", "window_s", "longest_wait_s"),
        *("price_wait_s", "max_gco2"),
    )
    mine, theirs = dict(one), dict(other)
    floors = [each["quality_min"] for each in (mine, theirs) if each["quality_min"] is not None]
    lists = [each["precisions"] for each in (mine, theirs) if each["precisions"] is not None]
    precisions = None if not lists else tuple(n for n in lists[0] if n in lists[-1])
    return one.model_copy(
        update={
            **{name: least(name) for name in limits},
            "latency_sensitive": mine["latency_sensitive"] or theirs["latency_sensitive"],
            "batchable": mine["batchable"] and theirs["batchable"],
            "target_chance": max(mine["target_chance"], theirs["target_chance"]),
            "precisions": precisions,
            "quality_min": max(floors, default=None),
        }
    )
