"""Proofs of an entry in a log that need no log to check (c2sp.org/tlog-proof)."""

import base64
import re
from collections.abc import Sequence

from topics.public_log.notes import SIZE_MAX, NoteError, unbase64
from topics.public_log.policy import CosignedCheckpoint, TrustPolicy
from topics.signing.merkle import DIGEST_BYTES, leaf_hash, path_root

_FORMAT = "c2sp.org/tlog-proof@v1"
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})", re.ASCII)
_PATH_MAX = 63


def format_log_proof(index: int, path: Sequence[bytes], checkpoint: bytes) -> str:
    """Return the proof of the entry at an index, below a signed checkpoint."""
    hashes = "".join(base64.b64encode(node).decode() + "\n" for node in path)
    return f"{_FORMAT}\nindex {index}\n{hashes}\n{checkpoint.decode()}"


def check_log_proof(
    proof: str, entry: bytes, policy: TrustPolicy
) -> tuple[int, CosignedCheckpoint]:
    """Return the index of an entry that a proof holds of, and the checkpoint that it stands in.

    Raises:
        NoteError: it does not hold; the message says why.
    """
    head, found, note = proof.partition("\n\n")
    lines = head.split("\n")
    if not found or lines[0] != _FORMAT:
        raise NoteError(f"no proof of the format {_FORMAT}")
    rest = lines[2:] if len(lines) > 1 and lines[1].startswith("extra ") else lines[1:]
    numbered = _INDEX.fullmatch(rest[0]) if rest else None
    if numbered is None or int(numbered[1]) > SIZE_MAX or len(rest) - 1 > _PATH_MAX:
        raise NoteError("a proof without an index, or with too long a path")
    path = [unbase64(line) for line in rest[1:]]
    if any(len(node) != DIGEST_BYTES for node in path):
        raise NoteError("a proof with a hash of another length")
    cosigned = policy.check(note.encode())
    index, checkpoint = int(numbered[1]), cosigned.checkpoint
    try:
        root = path_root(leaf_hash(entry), index, checkpoint.size, path)
    except ValueError as error:
        raise NoteError(f"the path does not lead to the checkpoint: {error}") from error
    if root != checkpoint.root:
        raise NoteError("the path does not lead to the checkpoint: the log has another entry there")
    return index, cosigned
