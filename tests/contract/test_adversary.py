"""Both verifiers flag whatever is done to a trail or an archive, by any seed.

    SHUNTER_ADVERSARY_SEEDS=5000 pytest -n0 tests/contract/test_adversary.py

The auditor has the fingerprint of the installation key, and the heads of the last check.
"""

import os
import shutil
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from adversary import KINDS, TRUST, forge, introduced_trail, strange_trail
from archive_adversary import ArchiveForger
from audit_cases import Trail
from second_verifier import export, second_findings

from shunter.archive import Archive, ArchiveError
from shunter.audit.archive_trail import verify_archive
from shunter.audit.chains import Witnessed
from shunter.audit.keyring import Keyring

SEEDS = int(os.environ.get("SHUNTER_ADVERSARY_SEEDS", "100"))
START = int(os.environ.get("SHUNTER_ADVERSARY_START", "0"))


def trusting() -> Keyring:
    return Keyring(installations=frozenset({TRUST}))


async def kept_heads(trail: Trail) -> tuple[Witnessed, dict[str, Any]]:
    """The heads after a check, as each verifier takes them."""
    found = await trail.verified(keyring=trusting())
    assert found.is_good, found.problems
    kept = {chain: (head, "last month") for chain, head in found.heads.items()}
    return kept, {chain: asdict(head) for chain, head in found.heads.items()}


@pytest.mark.slow
async def test_each_forgery_of_a_topic_is_flagged_by_both(tmp_path: Path) -> None:
    trail, strange = await introduced_trail(), await strange_trail()
    kept, heads = await kept_heads(trail)
    # The progress is the operator's, and no help against it.
    trail.progress = []
    export(trail, tmp_path)
    assert second_findings(tmp_path, trust=[TRUST], heads=heads) == []
    missed, outcomes = [], Counter[str]()
    for seed in range(START, START + SEEDS):
        forged = replace(trail, **{kind: list(getattr(trail, kind)) for kind in KINDS})
        forgery = forge(forged, strange, seed)
        first = await forged.verified(keyring=trusting(), witnessed=kept)
        export(forged, tmp_path)
        second = second_findings(tmp_path, trust=[TRUST], heads=heads)
        outcomes["boundary" if forgery.boundary else "caught"] += 1
        if forgery.boundary is None and (first.is_good or not second):
            missed.append((seed, forgery.told, dict(first.counts), second))
    assert not missed, f"{len(missed)} of {SEEDS}: {missed[:9]}"
    assert outcomes["caught"] > 0.7 * SEEDS, outcomes


@pytest.mark.slow
async def test_each_forgery_of_an_archive_is_flagged_by_both(tmp_path: Path) -> None:
    trail = await introduced_trail()
    kept, heads = await kept_heads(trail)
    forger = await ArchiveForger.make(tmp_path / "whole", trail)
    assert first_of(tmp_path / "whole", kept) == set()
    assert second_of(tmp_path / "whole", heads) == []
    missed, outcomes = [], Counter[str]()
    for seed in range(START, START + SEEDS // 2):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        forgery = forger.forge(copy, seed)
        first, second = first_of(copy, kept), second_of(copy, heads)
        outcomes["boundary" if forgery.boundary else "caught"] += 1
        if forgery.boundary is None and not (first and second):
            missed.append((seed, forgery.told, first, second))
    assert not missed, f"{len(missed)}: {missed[:9]}"
    assert outcomes["caught"] > SEEDS // 4, outcomes


def first_of(directory: Path, kept: Witnessed) -> set[str]:
    try:
        found = verify_archive(Archive(str(directory)), keyring=trusting(), witnessed=kept)
    except ArchiveError:
        return {"unreadable"}
    return set(found.counts)


def second_of(directory: Path, heads: dict[str, Any]) -> list[str]:
    try:
        return second_findings(directory, trust=[TRUST], heads=heads, is_archive=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException):
        return ["unreadable"]  # As a program it ends with an error.
