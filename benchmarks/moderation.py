"""Fits the heads of the CPU backend's moderations, and measures them on prompts they have not seen.

    python -m benchmarks.moderation samples-1680.jsonl.gz           # prints the table
    python -m benchmarks.moderation samples-1680.jsonl.gz --write   # and writes the heads

The file is `data/samples-1680.jsonl.gz` of openai/moderation-api-release (MIT): prompts labelled by
OpenAI's taxonomy of 2022. Each prompt is judged once, by heads fitted on nine tenths of the others,
with the threshold that was best within those. Takes two minutes; needs the extra `cpu`.
"""

import argparse
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from policies.config.fleet import CPUBackendConfig
from workers.backends.cpu.models import Embedder
from workers.backends.cpu.moderation import HEADS_FILE, WINDOW_TOKENS

HOME = Path(__file__).parents[1] / "workers" / "backends" / "cpu" / HEADS_FILE
LABELS = {
    "sexual": "S",
    "hate": "H",
    "violence": "V",
    "harassment": "HR",
    "self-harm": "SH",
    "sexual/minors": "S3",
    "hate/threatening": "H2",
    "violence/graphic": "V2",
}
# Of OpenAI's categories today; the data set is older.
UNLABELLED = (
    "harassment/threatening",
    "self-harm/intent",
    "self-harm/instructions",
    "illicit",
    "illicit/violent",
)
# A head with less says more wrong than right wherever it says much.
PRECISION_MIN = 0.4
FOLDS = 10
# The least that a head gives way to its prompts: 0.3 to 10 differ by 0.02.
C = 1.0


class Prompts:
    """The labelled prompts, as vectors of their windows."""

    def __init__(self, path: Path) -> None:
        embedder = Embedder(CPUBackendConfig(type="cpu"), "benchmarks", WINDOW_TOKENS)
        lines = gzip.decompress(path.read_bytes()).splitlines()
        self.labels = [orjson.loads(line) for line in lines]
        vectors, owners = [], []
        for number, row in enumerate(self.labels):
            found, _ = embedder.windows(row["prompt"], WINDOW_TOKENS)
            vectors += found
            owners += [number] * len(found)
        self.vectors, self.owners = np.array(vectors), np.array(owners)

    def known(self, label: str) -> tuple[Any, Any]:
        """Return the numbers of the prompts of which the label is known, and the label."""
        known = [n for n, row in enumerate(self.labels) if label in row]
        return np.array(known), np.array([self.labels[n][label] for n in known])

    def fit(self, numbers: Any, truth: Any) -> LogisticRegression:
        """Return a head for these prompts: each window counts as labelled as its prompt."""
        of = dict(zip(numbers, truth, strict=True))
        rows = np.isin(self.owners, numbers)
        head = LogisticRegression(C=C, class_weight="balanced", max_iter=300)
        return head.fit(self.vectors[rows], [of[n] for n in self.owners[rows]])

    def logits(self, head: LogisticRegression, numbers: Any) -> Any:
        """Return the logit of each prompt's worst window."""
        all_of = self.vectors @ head.coef_[0] + head.intercept_[0]
        return np.array([all_of[self.owners == n].max() for n in numbers])


def out_of_fold(prompts: Prompts, numbers: Any, truth: Any) -> Any:
    """Return the logit of each prompt by a head that has not seen it."""
    fold, found = folds(truth), np.zeros(len(truth))
    for each in range(FOLDS):
        mine = fold == each
        head = prompts.fit(numbers[~mine], truth[~mine])
        found[mine] = prompts.logits(head, numbers[mine])
    return found


def folds(truth: Any) -> Any:
    """Return a fold for each, with as many positives in one as in another."""
    chance, fold = np.random.default_rng(1), np.empty(len(truth), int)
    for value in (0, 1):
        where = np.flatnonzero(truth == value)
        chance.shuffle(where)
        fold[where] = np.arange(len(where)) % FOLDS
    return fold


def threshold(truth: Any, logits: Any) -> float:
    """Return the logit from which on F1 is best."""
    order = np.argsort(-logits)
    hits = np.cumsum(truth[order])
    best = int(np.argmax(2 * hits / (np.arange(1, len(truth) + 1) + truth.sum())))
    return float(logits[order][best])


def measured(prompts: Prompts, numbers: Any, truth: Any) -> dict[str, Any]:
    """Return what heads reach on prompts that neither they nor their thresholds have seen."""
    fold, flags, found = folds(truth), np.zeros(len(truth), bool), np.zeros(len(truth))
    for each in range(FOLDS):
        mine = fold == each
        inner = out_of_fold(prompts, numbers[~mine], truth[~mine])
        head = prompts.fit(numbers[~mine], truth[~mine])
        found[mine] = prompts.logits(head, numbers[mine])
        flags[mine] = found[mine] >= threshold(truth[~mine], inner)
    hits = int((flags & (truth == 1)).sum())
    return {
        "prompts": len(truth),
        "positive": int(truth.sum()),
        "auc": round(float(roc_auc_score(truth, found)), 3),
        "average_precision": round(float(average_precision_score(truth, found)), 3),
        "precision": round(hits / max(1, int(flags.sum())), 2),
        "recall": round(hits / int(truth.sum()), 2),
    }


def head_of(prompts: Prompts, label: str) -> dict[str, Any]:
    """Return a head fitted on all prompts, with its measures; without weights if they are poor."""
    numbers, truth = prompts.known(label)
    reached = measured(prompts, numbers, truth)
    if reached["average_precision"] < PRECISION_MIN:
        return {"weights": None, "measured": reached}
    head = prompts.fit(numbers, truth)
    # A text is flagged from 0.5 on, which is a logit of 0.
    bias = head.intercept_[0] - threshold(truth, out_of_fold(prompts, numbers, truth))
    weights = [float(f"{weight:.5g}") for weight in head.coef_[0]]
    return {"bias": round(float(bias), 5), "weights": weights, "measured": reached}


def main() -> None:
    """Fit, print the table, and write the heads where that is asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--write", action="store_true", help=f"write {HEADS_FILE}")
    asked = parser.parse_args()
    prompts = Prompts(asked.file)
    found = {name: head_of(prompts, label) for name, label in LABELS.items()}
    print("| category | positive of | AUC | average precision | precision | recall | judged |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for name, head in found.items():
        m = head["measured"]
        figures = f"{m['auc']} | {m['average_precision']} | {m['precision']} | {m['recall']}"
        judged = "no" if head["weights"] is None else "yes"
        print(f"| `{name}` | {m['positive']} of {m['prompts']} | {figures} | {judged} |")
    if asked.write:
        none = {"weights": None, "measured": None}
        packed = {
            "source": "openai/moderation-api-release, samples-1680 (MIT)",
            "vectors": "all-MiniLM-L6-v2, int8, mean pooling, length 1",
            "categories": found | dict.fromkeys(UNLABELLED, none),
        }
        HOME.write_bytes(orjson.dumps(packed) + b"\n")


if __name__ == "__main__":
    main()
