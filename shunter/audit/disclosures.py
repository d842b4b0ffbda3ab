"""Disclosures: some parts of a request, shown without the others."""

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any

from shunter.console import UserError
from topics.signing.request_parts import leaf_of, part_hash, parts_of, whole_digest

FORMAT = "shunter-disclosure/1"
# A request has a few dozen members at most; who shows parts of one may be anybody.
LEAVES_MAX = 256


def disclose(request: Any, pointers: Iterable[str]) -> dict[str, Any]:
    """Return a document that shows these parts of a request, and hides the others.

    Args:
        request: parsed JSON, as it was sent.
        pointers: of the parts, such as ``/constraints/regions`` or ``/tenant``.

    Raises:
        UserError: it is no request, or has no such part.
    """
    if not isinstance(request, Mapping):
        raise UserError("a request is a JSON object")
    try:
        parts = parts_of(request)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the request has no canonical form: {error}") from error
    known = {part.pointer: (index, part) for index, part in enumerate(parts)}
    shown = []
    for pointer in pointers:
        if pointer not in known:
            raise UserError(f"the request has no part {pointer}; it has {', '.join(sorted(known))}")
        index, part = known[pointer]
        shown.append(
            {
                "index": index,
                "pointer": pointer,
                "value": part.value,
                "blind": base64.b64encode(part.blind).decode(),
            }
        )
    leaves = base64.b64encode(b"".join(part.leaf for part in parts)).decode()
    return {"format": FORMAT, "parts": shown, "leaves": leaves}


def is_disclosure(given: Any) -> bool:
    """Return True if parsed JSON says that it shows parts of a request."""
    return isinstance(given, dict) and given.get("format") == FORMAT


def shown_parts(key: bytes, whole: str, given: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return pointer and value of each part shown; none if one of them is not of the request.

    Args:
        key: of the digest.
        whole: the digest over all parts, from the evidence.
        given: as ``disclose`` returns it, from any source.
    """
    try:
        joined = base64.b64decode(given["leaves"], validate=True)
        leaves = [joined[at : at + 32] for at in range(0, len(joined), 32)]
        if not 0 < len(leaves) <= LEAVES_MAX or whole_digest(key, leaves) != whole:
            return []
        found = []
        for part in given["parts"]:
            pointer, value = str(part["pointer"]), part["value"]
            blind = base64.b64decode(part["blind"], validate=True)
            leaf = leaf_of(blind, part_hash(pointer, value))
            if leaves.index(leaf) != part["index"]:
                return []
            found.append((pointer, value))
    except (KeyError, TypeError, ValueError, RecursionError, binascii.Error):
        return []
    return found
