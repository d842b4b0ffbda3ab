"""Inclusion proofs: a file that proves to a holder of the key that a record was signed."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import orjson

from shunter.audit.keyring import KeyProblem, Keyring
from shunter.logs.reading import TrailRow
from topics import BadRecordError, Introduction, KeyEntry, PublishedKey, Root, decode
from topics.iso_time import iso_time
from topics.signing.merkle import inclusion_path, leaf_hash, path_root
from topics.signing.signed_root import is_signed, leaves_of
from topics.wire.canonical_json import canonical_json

T = TypeVar("T")

FORMAT = "shunter-proof/1"


class ProofError(Exception):
    """A proof is impossible or invalid; the message says why."""


def make_proof(
    request_id: str, rows: Sequence[TrailRow], roots: Iterable[TrailRow], keyring: Keyring
) -> dict[str, Any]:
    """Return a document that proves each record of a request.

    Args:
        request_id: of the request.
        rows: its evidence.
        roots: all that may be over it.
        keyring: with the keys that signed these.

    Raises:
        ProofError: a record is under no root: it was altered, or is no evidence.
    """
    wanted = {leaf_hash(row.value or b""): row for row in rows}
    proofs: dict[bytes, dict[str, Any]] = {}
    for row in roots:
        try:
            root = decode(Root, row.value or b"")
            leaves = leaves_of(root)
        except (BadRecordError, ValueError):
            continue
        for index, leaf in enumerate(leaves):
            if leaf in wanted and leaf not in proofs:
                record = json.loads(wanted[leaf].value or b"")
                proofs[leaf] = _proof(record, root, leaves, index)
    for leaf, row in wanted.items():
        if leaf not in proofs:
            raise ProofError(f"{row.where} is under no root: it was altered, or never signed")
    ids = {proof["root"]["statement"]["key"] for proof in proofs.values()}
    keys = [key for key in keyring.published() if key.statement.key in ids]
    return {
        "format": FORMAT,
        "request_id": request_id,
        "proofs": [proofs[leaf] for leaf in wanted],
        "keys": orjson.loads(orjson.dumps(keys)),
        "introductions": orjson.loads(orjson.dumps(list(keyring.introductions()))),
    }


def check_proof(document: Any, keyring: Keyring | None) -> list[str]:
    """Return a line for each proven record: what, by whom, when.

    Args:
        document: as ``make_proof`` returns it, from any source.
        keyring: keys to believe; those in the document where None, which shows no more than that
            their holders signed it. One that trusts installation keys takes keys and introductions
            from the document.

    Raises:
        ProofError: something in it does not hold.
    """
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ProofError(f"no proof of the format {FORMAT}")
    proofs = document.get("proofs")
    if not isinstance(proofs, list) or not proofs:
        raise ProofError("it has no proofs")
    keyring = keyring or Keyring()
    if keyring.trusted is None:
        for number, key in enumerate(_list(document, "keys")):
            published = _read(PublishedKey, key, f"keys[{number}]")
            keyring.add(KeyEntry(published=published), f"keys[{number}]")
        for number, each in enumerate(_list(document, "introductions")):
            introduction = _read(Introduction, each, f"introductions[{number}]")
            keyring.add(KeyEntry(introduction=introduction), f"introductions[{number}]")
    return [
        _check(number, proof, str(document.get("request_id")), keyring)
        for number, proof in enumerate(proofs)
    ]


def _list(document: dict[str, Any], name: str) -> list[Any]:
    found = document.get(name)
    if found is None:
        return []
    if not isinstance(found, list):
        raise ProofError(f"{name} is no list")
    return found


def _proof(record: Any, root: Root, leaves: Sequence[bytes], index: int) -> dict[str, Any]:
    return {
        "record": record,
        "index": index,
        "path": [node.hex() for node in inclusion_path(leaves, index)],
        "root": {
            "statement": orjson.loads(orjson.dumps(root.statement)),
            "signature": root.signature,
        },
    }


def _check(number: int, proof: Any, request_id: str, keyring: Keyring) -> str:
    where = f"proofs[{number}]"
    try:
        record, index, path = proof["record"], proof["index"], proof["path"]
        root = _read(Root, {**proof["root"], "leaves": ""}, f"{where}.root")
        statement = root.statement
        leaf = leaf_hash(canonical_json(record))
        tree = path_root(leaf, int(index), statement.count, [bytes.fromhex(node) for node in path])
        step, named = record["step"], record["request_id"]
    except (KeyError, TypeError, ValueError) as error:
        raise ProofError(f"{where}: {error}") from error
    if named != request_id:
        raise ProofError(f"{where}: the record is of {named!r}, not of {request_id!r}")
    if tree.hex() != statement.tree:
        raise ProofError(f"{where}: the record is not the one that was signed")
    try:
        key = keyring.check(statement.key, statement.writer, statement.at)
    except KeyProblem as problem:
        raise ProofError(f"{where}: {problem.message}") from problem
    if not is_signed(key, "root", statement, root.signature):
        raise ProofError(f"{where}: the signature is wrong")
    chain = f"{statement.chain}#{statement.sequence}"
    return (
        f"{step}, signed by {statement.writer} with key {statement.key} at"
        f" {iso_time(statement.at)}, record {int(index) + 1} of {statement.count} under {chain}"
    )


def _read(kind: type[T], value: Any, where: str) -> T:
    try:
        return decode(kind, orjson.dumps(value))
    except (BadRecordError, TypeError) as error:
        raise ProofError(f"{where}: {error}") from error
