"""Proofs to attest."""

from typing import Any

from audit_cases import Trail

from shunter.audit.keyring import Keyring
from shunter.audit.proofs import make_proof
from shunter.audit.topic import add_key
from shunter.logs.reading import row_of


def proof_of(trail: Trail, request_id: str = "r3") -> dict[str, Any]:
    """Return the proof of a request of a trail."""
    keyring = Keyring()
    for record in trail.keys:
        add_key(keyring, record.value, "keys")
    rows = [row_of(r) for r in trail.evidence if r.key == request_id.encode()]
    return make_proof(request_id, rows, [row_of(r) for r in trail.roots], keyring)
