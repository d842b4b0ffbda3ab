"""Merkle trees as of RFC 6962, section 2.1: one hash for many records, and proofs of each."""

import hashlib
from collections.abc import Sequence

DIGEST_BYTES = 32
_LEAF, _NODE = b"\x00", b"\x01"


def leaf_hash(record: bytes) -> bytes:
    """Return the hash of one record."""
    return hashlib.sha256(_LEAF + record).digest()


def tree_hash(leaves: Sequence[bytes]) -> bytes:
    """Return the hash of a tree with these leaf hashes, in this order; at least one.

    A node without a neighbour moves up to the next level, which equals the RFC's split at the
    largest power of two.
    """
    level = list(leaves)
    sha256 = hashlib.sha256
    while len(level) > 1:
        above = [
            sha256(_NODE + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)
        ]
        if len(level) % 2:
            above.append(level[-1])
        level = above
    return level[0]


def inclusion_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Return the hashes that lead from one leaf to the root, its nearest neighbour first."""
    path, level = [], list(leaves)
    while len(level) > 1:
        neighbour = index ^ 1
        if neighbour < len(level):
            path.append(level[neighbour])
        above = [
            hashlib.sha256(_NODE + level[i] + level[i + 1]).digest()
            for i in range(0, len(level) - 1, 2)
        ]
        if len(level) % 2:
            above.append(level[-1])
        level, index = above, index // 2
    return path


def path_root(leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes:
    """Return the root that a path leads to from a leaf (RFC 9162, section 2.1.3.2).

    Raises:
        ValueError: no tree of ``count`` leaves has such a path.
    """
    if not 0 <= index < count:
        raise ValueError(f"leaf {index} of a tree with {count}")
    node, last, rest = leaf, count - 1, list(path)
    while last:
        if index % 2 or index < last:
            if not rest:
                raise ValueError("the path is too short")
            neighbour = rest.pop(0)
            pair = neighbour + node if index % 2 else node + neighbour
            node = hashlib.sha256(_NODE + pair).digest()
        index, last = index // 2, last // 2
    if rest:
        raise ValueError("the path is too long")
    return node
