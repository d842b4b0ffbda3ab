"""Classes of plain requests: recognised by the policy's rules, and never to a client's loss."""

import random
import time
from typing import Any

import pytest
from decisions import decide_in
from hostile import PROPERTY
from hypothesis import example, given, settings
from hypothesis import strategies as st
from policy_cases import NOW, POLICY, a_policy, a_situation, tagged

from policies import Policy, recognition
from policies.config.policy import DEFAULT_CLASS
from policies.config.recognition import CODE_WORDS, Phrases, pattern_of, words_in
from policies.config.schema import DeclarationError
from policies.scoring.bindings import bind
from streams.config.declarations import load_policy

PACKAGED = load_policy(None)
# Each word of the packaged phrases, and each phrase.
FOUND_IN = [
    part
    for rule in PACKAGED.recognize
    for phrase in (*rule.says, *rule.unless)
    for part in (phrase.replace("_", "some"), *phrase.split())
]
RULE = """
recognize:
  - {task: bulk, confidence: 0.7, says: [summarize, "sum _ up"], unless: [story],
     input_tokens_min: 10LOOSE}
"""


def policy_with(loosens: bool = False, text: str = POLICY) -> Policy:
    return a_policy(text + RULE.replace("LOOSE", ", loosens: true" if loosens else ""))


def chat(*texts: str, system: str = "", **body: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": text} for text in texts]
    return {"model": "llama", "messages": messages} | body


def task_of(policy: Policy, body: dict[str, Any], **fields: Any) -> tuple[str, str, float]:
    tag = tagged(policy, body=body, task=None, **fields).tags["task"]
    return tag.value, tag.source, tag.confidence


LONG = "Please summarize this article about wagons, tracks and signals."


@pytest.mark.parametrize(
    ("body", "task"),
    [
        (chat(LONG), "bulk"),
        (chat(LONG.replace("summarize", "SUMMARIZE")), "bulk"),
        (chat("Can you sum these many pages up for me, so that I need not read them?"), "bulk"),
        (chat("summarize" + " wagons" * 5000 + "."), "bulk"),
        (chat("wagons " * 5000 + "summarize"), "bulk"),
        (chat("wagons " * 5000 + "summarize " + "wagons " * 5000), "chat"),
        (chat("Here are twenty pages of a report.", system="You summarize reports."), "bulk"),
        (chat(LONG, "And what do you think of it, all in all?"), "chat"),
        (chat(LONG + " Then write a story."), "chat"),
        (chat("He summarizes all the time, and I do not know why."), "chat"),
        (chat("summarize it"), "chat"),
        ({"model": "llama", "prompt": LONG}, "bulk"),
        ({"model": "llama", "messages": [{"role": "user", "content": [{"text": LONG}]}]}, "bulk"),
        ({"model": "llama", "messages": [3, {"role": "user"}, {"content": LONG}]}, "chat"),
    ],
)
def test_a_rule_sees_instructions_and_the_ends_of_what_is_said_last(
    body: dict[str, Any], task: str
) -> None:
    found, source, confidence = task_of(policy_with(), body)
    assert found == task
    assert (source, confidence) == (("estimate", 0.7) if task == "bulk" else ("policy", 0.5))


def test_a_client_that_names_a_class_gets_it() -> None:
    tags = tagged(policy_with(), body=chat(LONG), task="planning").tags
    assert (tags["task"].value, tags["task"].source) == ("planning", "client")


def test_a_class_that_was_recognised_grants_no_more_than_the_default() -> None:
    """The class bulk may wait for an hour; who asked for a chat has the chat's SLO and deadline."""
    policy = policy_with()
    plain = tagged(policy, body=chat("hello"), task=None).profile
    found = tagged(policy, body=chat(LONG), task=None).profile
    told = tagged(policy, body=chat(LONG), task="bulk").profile
    assert (found.task, told.batchable, found.batchable) == ("bulk", True, False)
    for name in ("ttft_s", "tpot_s", "deadline", "longest_wait_s", "latency_sensitive"):
        assert getattr(found, name) == getattr(plain, name), name
    assert found.output_tokens == told.output_tokens
    assert found.bound_by == (DEFAULT_CLASS,)


def test_a_client_that_may_wait_still_may() -> None:
    profile = tagged(policy_with(), body=chat(LONG), task=None, hints={"batchable": True}).profile
    assert profile.batchable
    profile = tagged(policy_with(), body=chat(LONG), task=None, slo={"ttft_ms": 100}).profile
    assert (profile.ttft_s, profile.batchable) == (0.1, False)


def test_the_default_class_keeps_its_floor_of_quality_and_its_bound() -> None:
    text = POLICY.replace("output_tokens: 200}", "output_tokens: 200, quality_min: 0.99, BOUND}")
    strict = text.replace("BOUND", "bound: {regions: [eu-west]}")
    where = a_situation(policy=strict + RULE.replace("LOOSE", ""))
    profile = bind(tagged(where.policy, body=chat(LONG), task=None).profile, where.policy)
    able = [c for c in decide_in(profile, where, NOW).candidates if c.refused is None]
    assert profile.task == "bulk"
    assert able
    assert {c.region for c in able} == {"eu-west"}
    assert all(c.precision != "int8" for c in able)
    assert where.policy.floor_of(profile) == 0.99


def test_a_rule_may_let_its_class_loosen() -> None:
    profile = tagged(policy_with(loosens=True), body=chat(LONG), task=None).profile
    assert (profile.task, profile.batchable, profile.bound_by) == ("bulk", True, ())


@pytest.mark.parametrize("task", list(PACKAGED.classes))
def test_no_class_grants_more_than_the_default_where_it_was_recognised(task: str) -> None:
    strict, default = PACKAGED.as_strict(task), PACKAGED.classes[PACKAGED.default_class]
    assert strict.latency_sensitive
    assert not strict.batchable
    for name in ("ttft_ms", "tpot_ms", "deadline_s", "longest_wait_s", "window_s"):
        assert getattr(strict, name) <= getattr(default, name), name
    assert (strict.quality_min or 0) >= (default.quality_min or 0)
    assert strict.output_tokens == PACKAGED.classes[task].output_tokens


@pytest.mark.parametrize(
    ("body", "task"),
    [
        (
            chat("Summarize the following report in three sentences. " + "It rained. " * 40),
            "summarization",
        ),
        (chat("Write a Python function that returns the median of two lists."), "code_planning"),
        (chat("Why does it fail?\n```\nx = foo(1)\n```"), "code_planning"),
        (
            chat("Generate a question about the passage below. " + "It rained. " * 20),
            "synthetic_data",
        ),
        (chat("What is the capital of France?"), "chat"),
        (
            chat("Summarize it.", tools=[{"type": "function", "function": {"name": "f"}}]),
            "agent_step",
        ),
        (chat("word " * 40_000), "long_context"),
    ],
)
def test_the_packaged_policy_recognises_its_classes(body: dict[str, Any], task: str) -> None:
    assert task_of(PACKAGED, body)[0] == task


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ("{task: nowhere, confidence: 0.5, says: [hello]}", "recognize[0].task"),
        ("{task: bulk, confidence: 0.5}", "recognize[0]"),
        ("{task: bulk, confidence: 1.5, says: [hello]}", "confidence"),
        ("{task: bulk, confidence: 0.5, says: [hello], regex: x}", "regex"),
    ],
)
def test_a_rule_that_can_not_be_is_refused(rule: str, field: str) -> None:
    with pytest.raises(DeclarationError) as told:
        a_policy(f"{POLICY}\nrecognize: [{rule}]\n")
    assert field in str(told.value)


def test_no_text_makes_a_rule_slow() -> None:
    pattern = pattern_of(["sum _ up", "write _ function _ that"])
    assert pattern is not None
    draw = random.Random(5)
    words = ["sum", "up", "write", "function", "that", " ", "\n", ".", "w"]
    texts = ["".join(draw.choices(words, k=500)) for _ in range(20)]
    began_s = time.process_time()
    for text in [*texts, "sum " * 500, "sum a b c d " * 100, " " * 2000, "write a " * 250]:
        pattern.search(text)
    assert time.process_time() - began_s < 1.0


# Words and signs that phrases and texts share; some letters beyond ASCII equal others in any case.
PIECES = (
    "sum",
    "SUM",
    "\u017fum",
    "up",
    "kit",
    "\u212aIT",
    "s",
    "it's",
    "c++",
    "i\u0307",
    "\u0130",
)
JOINTS = (" ", "  ", "\n", "\x1c", "_", "-", ", ", "")


def joined(joints: tuple[str, ...], most: int) -> st.SearchStrategy[str]:
    """Pieces, each but the last with something behind it."""
    pairs = st.tuples(st.sampled_from(PIECES), st.sampled_from(joints))
    return st.lists(pairs, min_size=1, max_size=most).map(lambda p: "".join(map("".join, p)))


PHRASES = joined((" ", "  ", "_", "-"), 3).filter(lambda phrase: len(phrase) >= 2)


def test_phrases_are_found_as_by_one_pattern() -> None:
    """A word of each is sought before its pattern, which changes no answer."""
    answers = set()

    @settings(PROPERTY)
    @given(st.lists(PHRASES, min_size=1, max_size=3), joined(JOINTS, 8))
    @example(["up", "sum"], "what a \u017fum")
    @example(["kit"], "a \u212aIT")
    @example(["sum _ up"], "sum of it, up")
    def is_found_alike(phrases: list[str], text: str) -> None:
        found = pattern_of(phrases).search(text) is not None
        assert Phrases(phrases).are_in(text, words_in(text)) is found
        answers.add((found, text.isascii()))

    is_found_alike()
    assert answers == {(found, ascii_) for found in (True, False) for ascii_ in (True, False)}


CODE = (
    *("```", "def ", "f(", "class ", "import ", "from ", "os ", "#include", "public ", "static"),
    *("function ", "SELECT ", "* ", "FROM ", "CREATE TABLE ", "const ", "let ", "var ", "x ", "="),
    *("<?php", "<html", "\n", " ", "(", "word"),
)


def test_code_is_found_as_by_its_pattern_alone() -> None:
    answers = set()

    @settings(PROPERTY)
    @given(st.lists(st.sampled_from((*CODE, "\u00e9")), max_size=8).map("".join))
    def is_found_alike(text: str) -> None:
        found = recognition._CODE.search(text) is not None
        assert recognition._has_code(text, words_in(text)) is found
        answers.add(found)

    is_found_alike()
    assert answers == {True, False}


@settings(PROPERTY)
@given(st.lists(st.sampled_from([*FOUND_IN, "wagon", "The", "café", "\n"]), max_size=25))
def test_the_words_that_are_sought_are_enough(parts: list[str]) -> None:
    text = " ".join(parts)
    every, sought = words_in(text), words_in(text, PACKAGED.sought_words)
    assert (every is None) is (sought is None)
    for rule in PACKAGED.recognize:
        for said, phrases in ((rule.said, rule.says), (rule.unsaid, rule.unless)):
            if said is not None:
                is_there = pattern_of(phrases).search(text) is not None
                assert said.are_in(text, sought) is said.are_in(text, every) is is_there
    if every is not None and sought is not None:
        assert CODE_WORDS.isdisjoint(every) is CODE_WORDS.isdisjoint(sought)
