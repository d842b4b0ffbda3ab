"""Questions of `shunter audit` to the public log: a check beside the trail's own, and proofs."""

import time
from pathlib import Path
from typing import Any

import orjson

from shunter.audit.findings import REMADE_UNCHECKED, TAIL_UNCHECKED, Findings
from shunter.audit.proofs import ProofError
from shunter.audit.source import TopicTrail, Trail
from shunter.console import UserError
from shunter.logs.reading import TrailRow
from shunter.public_log.check import LAG_S_MAX, LogCheck, LogFacts
from shunter.public_log.store import LogReader, LogStoreError, open_reader
from shunter.public_log.tree import read_entries, read_tile
from topics.iso_time import iso_time
from topics.public_log.entries import entry_of
from topics.public_log.notes import NoteError
from topics.public_log.policy import TrustPolicy, parse_policy
from topics.public_log.proofs import check_log_proof, format_log_proof
from topics.public_log.tiles import TILE_WIDTH, TiledTree


class OpenLogCheck:
    """A log that was read before the trail, and what was found in it so far."""

    def __init__(self, reader: LogReader, policy: TrustPolicy, checkpoint: Path | None) -> None:
        self._findings = Findings()
        self._path = checkpoint
        self._check = LogCheck(reader, policy, self._findings.add)
        self._read_at = time.time()
        kept = checkpoint.read_bytes() if checkpoint is not None and checkpoint.exists() else None
        self._is_read = self._check.read(kept)

    def finish(
        self, trail: Trail, findings: Findings, retention_s: float | None, age_s_max: float
    ) -> None:
        """Hold the trail's roots against the log, and add what is wrong to the findings.

        Args:
            trail: read after the log.
            findings: to add to.
            retention_s: how long the trail is kept; None for ever.
            age_s_max: how old the witnesses' word may be.
        """
        if self._is_read:

            def take(row: TrailRow) -> None:
                self._check.add_root(row.value, row.where)

            trail.each("roots", take)
            # What is logged was committed before; an archive has it a round later.
            behind_s = 0.0 if isinstance(trail, TopicTrail) else LAG_S_MAX
            facts = self._check.finish(
                self._read_at, retention_s, behind_s=behind_s, age_s_max=age_s_max
            )
            _say_what_was_checked(facts, findings)
            told = "whether the log is the one that you saw before"
            if self._check.has_kept:
                findings.checked.append("the log goes on from the checkpoint that you kept")
            elif self._path is None:
                findings.unchecked.append(f"{told} (--checkpoint)")
            else:
                findings.unchecked.append(f"{told}: {self._path} is not there yet")
        findings.problems += self._findings.problems
        findings.counts += self._findings.counts

    def keep(self) -> None:
        """Write the checkpoint for the next check; nothing was wrong."""
        if self._path is not None and self._check.checkpoint is not None:
            self._path.write_bytes(self._check.checkpoint)


def _say_what_was_checked(facts: LogFacts, findings: Findings) -> None:
    """Add what the log tells to what was checked, and take away what it has made known."""
    told = f"{facts.logged:,} roots in the public log of {facts.size:,} entries, in its order"
    if facts.cosigned_at is None:
        findings.checked.append(f"{told}; no witness has cosigned it")
        findings.unchecked.append("whether the log's owner shows others another log (witnesses)")
    else:
        cosigners, at = ", ".join(facts.cosigners), iso_time(facts.cosigned_at)
        findings.checked.append(f"{told}, cosigned by {cosigners} at {at}")
        known = {REMADE_UNCHECKED, TAIL_UNCHECKED}
        findings.unchecked = [each for each in findings.unchecked if each not in known]
        findings.unchecked += [
            f"whether anything from after {at} was cut off: the witnesses have not seen it",
            "roots that were kept from the log and from this trail alike, at the end of a chain",
        ]
    findings.unchecked += facts.notes


def open_log_check(url: str | None, policy: Path | None, kept: Path | None) -> OpenLogCheck | None:
    """Read the log at a URL; None if none is named.

    Raises:
        UserError: the log or a file can't be read, or no policy is named.
    """
    if url is None:
        if policy is not None or kept is not None:
            raise UserError("--policy and --checkpoint are of a public log; name it by --log")
        return None
    try:
        return OpenLogCheck(open_reader(url), load_policy(policy), kept)
    except (LogStoreError, NoteError) as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{kept}: {error.strerror}") from error


def load_policy(path: Path | None) -> TrustPolicy:
    """Return the policy of a file.

    Raises:
        UserError: there is none, or it can't be read.
    """
    if path is None:
        raise UserError("--policy names whom to believe: the log's key, and its witnesses'")
    try:
        return parse_policy(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except NoteError as error:
        raise UserError(f"{path}: {error}") from error


def prove_logged(document: dict[str, Any], url: str, policy: Path | None) -> list[str]:
    """Return, for each proof of a document, that its root is in the log (c2sp.org/tlog-proof).

    Raises:
        UserError: one is not, or the log can't be read or believed.
    """
    trusted = load_policy(policy)
    try:
        reader = open_reader(url)
        data = reader.read("checkpoint") or b""
        size = trusted.check(data).checkpoint.size
        tree = TiledTree(size, lambda level, index, width: read_tile(reader, level, index, width))
        entries = [_entry(proof) for proof in document["proofs"]]
        places = _places(reader, size, set(entries))
        missing = [n for n, entry in enumerate(entries) if entry not in places]
        if missing:
            raise UserError(
                f"the root over proofs[{missing[0]}] is not in the log up to its {size} entries: it"
                " was signed a moment ago, or never logged"
            )
        proofs = [format_log_proof(places[e], tree.inclusion(places[e]), data) for e in entries]
        for entry, proof in zip(entries, proofs, strict=True):
            check_log_proof(proof, entry, trusted)
    except (LogStoreError, NoteError) as error:
        raise UserError(str(error)) from error
    return proofs


def check_logged(document: dict[str, Any], policy: Path) -> list[str]:
    """Return a line for each proof of a document whose root a cosigned log has.

    Raises:
        ProofError: one has none, or it does not hold.
        UserError: the policy can't be read.
    """
    trusted = load_policy(policy)
    proofs, logged = document["proofs"], document.get("log_proofs")
    if not isinstance(logged, list) or len(logged) != len(proofs):
        raise ProofError("it has no proof of the public log: `shunter audit proof --log` adds it")
    lines = []
    for number, (proof, told) in enumerate(zip(proofs, logged, strict=True)):
        try:
            index, cosigned = check_log_proof(str(told), _entry(proof), trusted)
        except NoteError as error:
            raise ProofError(f"log_proofs[{number}]: {error}") from error
        at = cosigned.is_first_at
        seen = "" if at is None else f", seen by {', '.join(cosigned.cosigned)} by {iso_time(at)}"
        lines.append(f"entry {index} of the log {cosigned.checkpoint.origin}{seen}")
    return lines


def _entry(proof: dict[str, Any]) -> bytes:
    entry = entry_of(orjson.dumps({**proof["root"], "leaves": ""}))
    if entry is None:
        raise NoteError("the root of a proof is none that a log takes")
    return entry


def _places(reader: LogReader, size: int, wanted: set[bytes]) -> dict[bytes, int]:
    """Return the indexes of entries, the newest bundles looked through first."""
    places: dict[bytes, int] = {}
    for number in reversed(range(-(-size // TILE_WIDTH))):
        for at, entry in enumerate(read_entries(reader, size, number)):
            if entry in wanted:
                places.setdefault(entry, number * TILE_WIDTH + at)
        if places.keys() == wanted:
            break
    return places
