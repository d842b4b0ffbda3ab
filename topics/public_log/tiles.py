"""Tiles (c2sp.org/tlog-tiles): where hashes and entries of a log stand, and proofs of them."""

import hashlib
from collections.abc import Callable, Iterator, Sequence

from topics.public_log.notes import NoteError
from topics.signing.merkle import DIGEST_BYTES, tree_hash

TILE_WIDTH = 256
_HEIGHT = 8
ENTRY_BYTES_MAX = 0xFFFF
EMPTY_ROOT = hashlib.sha256(b"").digest()

ReadTile = Callable[[int, int, int], bytes]
"""Returns a tile by level, index and width. Raises NoteError where there is none."""


def tile_path(level: int | None, index: int, width: int = TILE_WIDTH) -> str:
    """Return the path of a tile below the log's prefix; of a bundle of entries where None."""
    digits = f"{index:03d}"
    digits = digits.zfill(-len(digits) // 3 * -3)
    parts = [digits[i : i + 3] for i in range(0, len(digits), 3)]
    number = "/".join([*(f"x{part}" for part in parts[:-1]), parts[-1]])
    partial = "" if width == TILE_WIDTH else f".p/{width}"
    return f"tile/{'entries' if level is None else level}/{number}{partial}"


def tile_width(size: int, level: int, index: int) -> int:
    """Return how many hashes a tile has in a tree of this size; 0 where there is no such tile."""
    return max(0, min(TILE_WIDTH, (size >> _HEIGHT * level) - index * TILE_WIDTH))


def bundle_of(entries: Sequence[bytes]) -> bytes:
    """Return a bundle of entries, each after its length in two bytes.

    Raises:
        NoteError: one is too long.
    """
    if any(len(entry) > ENTRY_BYTES_MAX for entry in entries):
        raise NoteError(f"an entry has at most {ENTRY_BYTES_MAX} bytes")
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def entries_of(bundle: bytes, count: int) -> Iterator[bytes]:
    """Yield the entries of a bundle that has so many.

    Raises:
        NoteError: it has others.
    """
    at = 0
    for _ in range(count):
        begin = at + 2
        at = begin + int.from_bytes(bundle[at:begin], "big")
        if begin > len(bundle) or at > len(bundle):
            raise NoteError("a bundle of entries ends within one")
        yield bundle[begin:at]
    if at != len(bundle):
        raise NoteError(f"a bundle of entries has more than {count}")


class TiledTree:
    """The tree of a log at one size, read from its tiles as they are needed.

    The hashes are as good as the tiles: whoever is given a proof holds it against a checkpoint.
    """

    def __init__(self, size: int, read: ReadTile) -> None:
        self.size = size
        self._read = read
        self._tiles: dict[tuple[int, int], bytes] = {}

    def root(self, size: int | None = None) -> bytes:
        """Return the root, or that of the first entries.

        Raises:
            NoteError: a tile is missing, or no tile.
        """
        size = self.size if size is None else size
        return self._range(0, size) if size else EMPTY_ROOT

    def inclusion(self, index: int) -> list[bytes]:
        """Return the path from an entry to the root, its neighbour first (RFC 6962, 2.1.1).

        Raises:
            NoteError: a tile is missing, or no tile; there is no such entry.
        """
        if not 0 <= index < self.size:
            raise NoteError(f"no entry {index} in a log of {self.size}")
        path, first, end = [], 0, self.size
        while end - first > 1:
            middle = first + _split(end - first)
            if index < middle:
                path.append(self._range(middle, end))
                end = middle
            else:
                path.append(self._range(first, middle))
                first = middle
        return path[::-1]

    def consistency(self, old: int) -> list[bytes]:
        """Return the proof that the first ``old`` entries are those of before (RFC 6962, 2.1.2).

        Raises:
            NoteError: a tile is missing, or no tile; the log is shorter.
        """
        if not 0 <= old <= self.size:
            raise NoteError(f"{old} entries of a log of {self.size}")
        proof: list[bytes] = []
        first, end, is_whole = 0, self.size, True
        while 0 < old < end:
            middle = first + _split(end - first)
            if old <= middle:
                proof.append(self._range(middle, end))
                end = middle
            else:
                proof.append(self._range(first, middle))
                first, is_whole = middle, False
        if not is_whole:
            proof.append(self._range(first, end))
        return proof[::-1]

    def _range(self, first: int, end: int) -> bytes:
        """Return the hash of entries whose first is a multiple of the next power of two."""
        count = end - first
        if count & (count - 1) == 0:
            return self._subtree(count.bit_length() - 1, first >> count.bit_length() - 1)
        middle = first + _split(count)
        return _node(self._range(first, middle), self._range(middle, end))

    def _subtree(self, height: int, index: int) -> bytes:
        """Return the hash of 2^height entries, ``index`` such subtrees from the left."""
        level, within = divmod(height, _HEIGHT)
        first = index << within
        tile = self._tile(level, first // TILE_WIDTH)
        start, count = first % TILE_WIDTH, 1 << within
        hashes = tile[start * DIGEST_BYTES : (start + count) * DIGEST_BYTES]
        return tree_hash(hashes_of(hashes))

    def _tile(self, level: int, index: int) -> bytes:
        found = self._tiles.get((level, index))
        if found is None:
            width = tile_width(self.size, level, index)
            found = self._read(level, index, width)
            if len(found) != width * DIGEST_BYTES:
                raise NoteError(f"{tile_path(level, index, width)} has {len(found)} bytes")
            self._tiles[level, index] = found
        return found


def hashes_of(tile: bytes) -> list[bytes]:
    """Return the hashes that stand in a tile."""
    return [tile[i : i + DIGEST_BYTES] for i in range(0, len(tile), DIGEST_BYTES)]


def _split(count: int) -> int:
    """Return the largest power of two below a count from 2 on."""
    return 1 << (count - 1).bit_length() - 1


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
