"""Rates at which a policy's rules recognise the class of a labelled prompt.

    python -m benchmarks.class_rules FLASK.jsonl T0_FOLDER [--half held-out] [--errors]

The prompts are public, and labelled by those who published them:

- FLASK (kaistAI/FLASK, ``evaluation_set/flask_evaluation.jsonl``, 1,740 prompts): those of the
  domain Coding are ``code_planning``, others ``chat``.
- The prompts of T0 (yizhongw/self-instruct, ``data/finetuning/t0_train_50k/data_per_template``), at
  most 40 of each template: summaries of five data sets are ``summarization``; templates that make
  questions, reviews, stories or sentences are ``synthetic_data``; all others are ``chat``.

The rules were written with the half ``tuning`` in sight, which has the even FLASK prompts and the
T0 templates of some data sets; whole data sets are held out (`HELD_OUT`), with the odd FLASK
prompts. Only ``--half held-out`` is a measure.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from policies.recognition import recognize
from streams.config.declarations import load_policy
from topics import InferenceRequest

EACH_MAX = 40
SUMMARIES = ("cnn_dailymail_3_0_0_", "multi_news_", "samsum_", "xsum_", "gigaword_")
# Of those data sets, the templates that turn a summary into a text, or ask for a title.
NO_SUMMARIES = (
    "generate_story", "spice_up_story", "expand_reverse_task", "match_this_summary",
    "reverse_writing", "write_an_article", "write_its_sentence", "title", "write_an_outline",
)  # fmt: skip
MADE = (
    "generate_question", "generate_review", "Generate_Question", "Generate_the_question",
    "generate_story", "write_an_article", "match_this_summary", "expand_reverse_task",
    "build_story_around", "paraphrase", "Given_concepts", "Put_together", "topic_to_sentence",
    "Example_prompt", "random_task_template", "generate_sentence",
)  # fmt: skip
HELD_OUT = (
    "xsum_", "samsum_", "duorc_", "app_reviews_", "social_i_qa_", "wiki_qa_", "quoref_", "ropes_",
    "imdb_", "glue_", "trec_", "qasc_", "dream_", "wiki_bio_",
)  # fmt: skip


def flask(file: Path, half: str) -> Iterator[tuple[str, str]]:
    """Yield label and prompt."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            if (number % 2 == 1) == (half == "held-out"):
                label = "code_planning" if "Coding" in row["domain"] else "chat"
                yield label, row["instruction"]


def t0(folder: Path, half: str) -> Iterator[tuple[str, str]]:
    """Yield label and prompt, the first of each template."""
    for file in sorted(folder.glob("*.jsonl")):
        if file.name.startswith(HELD_OUT) == (half == "held-out"):
            with file.open(encoding="utf-8") as lines:
                for _, line in zip(range(EACH_MAX), lines, strict=False):
                    yield label_of(file.name), json.loads(line)["prompt"]


def label_of(template: str) -> str:
    """Return the class of a template's prompts."""
    if any(part in template for part in MADE):
        return "synthetic_data"
    if template.startswith(SUMMARIES) and not any(part in template for part in NO_SUMMARIES):
        return "summarization"
    return "chat"


def main() -> None:
    """Print the confusion table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("flask", type=Path)
    parser.add_argument("t0", type=Path)
    parser.add_argument("--half", choices=["tuning", "held-out"], default="held-out")
    parser.add_argument("--policy", type=Path)
    parser.add_argument("--errors", action="store_true", help="Show what was taken for another.")
    given = parser.parse_args()
    policy = load_policy(given.policy)
    found: Counter[tuple[str, str]] = Counter()
    for label, prompt in [*flask(given.flask, given.half), *t0(given.t0, given.half)]:
        body = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
        request = InferenceRequest(id="r", model="m", body=body)
        seen = recognize(request, policy, "chat", len(prompt) // 4)
        guess = policy.default_class if seen is None else seen.task
        found[label, guess] += 1
        if given.errors and guess != label:
            print(f"{label} as {guess}: {prompt[:160]!r} ... {prompt[-100:]!r}")
    labels = sorted({label for label, _ in found})
    guesses = sorted({guess for _, guess in found})
    print(f"{'label':16}{'prompts':>8}" + "".join(f"{guess:>16}" for guess in guesses))
    for label in labels:
        row = [found[label, guess] for guess in guesses]
        print(f"{label:16}{sum(row):8}" + "".join(f"{count:16}" for count in row))
    for guess in guesses:
        taken = sum(found[label, guess] for label in labels)
        of_it = sum(found[guess, other] for other in guesses)
        right = found[guess, guess]
        if of_it:
            print(f"{guess:16} precision {right / taken:.3f}  recall {right / of_it:.3f}")


if __name__ == "__main__":
    main()
