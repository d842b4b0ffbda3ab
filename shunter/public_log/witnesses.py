"""Witnesses, asked by HTTP for their cosignatures (c2sp.org/tlog-witness)."""

import asyncio
import base64
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import aiohttp

from shunter.public_log.tree import LogForkError
from topics.public_log.notes import (
    NoteError,
    SignedNote,
    cosigned_at,
    line_of,
    parse_signatures,
)
from topics.public_log.policy import TrustPolicy, Witness
from topics.public_log.tiles import TiledTree

logger = logging.getLogger(__name__)

ASKED_S_MAX = 10.0
ANSWER_BYTES_MAX = 64 * 1024
_OK, _CONFLICT = 200, 409


class WitnessError(Exception):
    """A witness did not cosign; the message says why."""


@dataclass(slots=True)
class Witnesses:
    """The witnesses of a policy that have a URL, and what each has cosigned last."""

    policy: TrustPolicy
    last_failure: dict[str, str] = field(default_factory=dict)
    """By its name, why a witness did not cosign the last time it was asked."""
    cosigned: Collection[str] = ()
    """The names of those that did."""
    _sizes: dict[str, int] = field(default_factory=dict)

    async def cosign(self, tree: TiledTree, note: bytes, text: str) -> Mapping[str, str]:
        """Ask all at once; return the lines of valid cosignatures, by the witness's name.

        Args:
            tree: that the checkpoint is of.
            note: the checkpoint, signed by the log.
            text: that of the note, which is what they sign.

        Raises:
            LogForkError: a witness has seen a longer tree of this log.
        """
        asked = {name: each for name, each in self.policy.witnesses.items() if each.url}
        timeout = aiohttp.ClientTimeout(total=ASKED_S_MAX)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as session:
            told = await asyncio.gather(
                *(
                    self._ask(session, name, witness, tree, note, text)
                    for name, witness in asked.items()
                ),
                return_exceptions=True,
            )
        lines, failures = {}, {}
        for name, answer in zip(asked, told, strict=True):
            if isinstance(answer, str):
                lines[name] = answer
            elif isinstance(answer, WitnessError | NoteError | aiohttp.ClientError | TimeoutError):
                failures[name] = f"{type(answer).__name__}: {answer}"
            else:
                raise answer
        for name, why in failures.items():
            # Told once, not each round.
            if self.last_failure.get(name) != why:
                logger.warning("witness %s does not cosign: %s", name, why)
        self.last_failure, self.cosigned = failures, tuple(lines)
        return lines

    async def _ask(
        self,
        session: aiohttp.ClientSession,
        name: str,
        witness: Witness,
        tree: TiledTree,
        note: bytes,
        text: str,
    ) -> str:
        # A witness that it does not know of tells its size in its refusal.
        for _ in range(3):
            old = self._sizes.get(name, 0)
            hashes = await asyncio.to_thread(tree.consistency, old)
            proof = "".join(base64.b64encode(node).decode() + "\n" for node in hashes)
            url = f"{(witness.url or '').rstrip('/')}/add-checkpoint"
            body = f"old {old}\n{proof}\n".encode() + note
            async with session.post(url, data=body, allow_redirects=False) as response:
                answer, status = await _answer(response), response.status
            if status == _OK:
                line = _cosignature(answer, witness, text)
                self._sizes[name] = tree.size
                return line
            if status != _CONFLICT:
                raise WitnessError(f"HTTP {status}: {answer[:200]!r}")
            self._sizes[name] = _told_size(name, answer, tree.size)
        raise WitnessError("it names another size each time")


async def _answer(response: aiohttp.ClientResponse) -> bytes:
    """Return the beginning of an answer; no cosignature is longer."""
    answer = b""
    while len(answer) < ANSWER_BYTES_MAX:
        chunk = await response.content.read(ANSWER_BYTES_MAX - len(answer))
        if not chunk:
            break
        answer += chunk
    return answer


def _told_size(name: str, answer: bytes, size: int) -> int:
    digits = answer.strip()
    if not digits.isdigit() or len(digits) > 19:
        raise WitnessError(f"it names no size: {answer[:40]!r}")
    told = int(digits)
    if told > size:
        raise LogForkError(
            f"witness {name} has cosigned {told} entries of this log, and {size} are here: these"
            " are older files of it. To go on would sign a second tree: restore the newest, or"
            " begin another log under another name"
        )
    return told


def _cosignature(answer: bytes, witness: Witness, text: str) -> str:
    try:
        note = SignedNote(text, parse_signatures(answer.decode()))
    except UnicodeDecodeError as error:
        raise WitnessError("its answer is no text") from error
    if cosigned_at(note, witness.key) is None:
        raise WitnessError("its answer has no signature of the key that the policy names")
    return line_of(witness.key, note.of(witness.key) or b"")
