"""Attestations: the proof of a request's evidence as an in-toto statement in a DSSE envelope.

Whoever has tools for supply-chain attestations reads and verifies it without Shunter. The statement
is https://github.com/in-toto/attestation (v1), the envelope https://github.com/secure-systems-lab/dsse.
"""

import hashlib
from typing import Any

from google.protobuf import json_format
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from topics.signing.keys import SigningKey
from topics.wire.canonical_json import canonical_json

PAYLOAD_TYPE = "application/vnd.in-toto+json"
PREDICATE_TYPE = "urn:shunter:evidence:v1"


def attest(proof: dict[str, Any], key: SigningKey) -> dict[str, Any]:
    """Return a signed attestation as parsed JSON.

    Args:
        proof: as ``shunter.audit.proofs.make_proof`` returns it. It is the predicate; each of its
            records is a subject, named ``<request>/<step>#<number>``, with the SHA-256 of its
            canonical JSON.
        key: of whoever attests.
    """
    subjects = []
    for number, each in enumerate(proof["proofs"]):
        record = each["record"]
        digest = hashlib.sha256(canonical_json(record)).hexdigest()
        name = f"{proof['request_id']}/{record['step']}#{number}"
        subjects.append(ResourceDescriptor(name=name, digest={"sha256": digest}).pb)
    statement = Statement(subjects, PREDICATE_TYPE, proof)
    statement.validate()
    payload = canonical_json(json_format.MessageToDict(statement.pb))
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    # Of a key each library makes another name, and refuses a name that is not its own; without one,
    # which the envelope allows, each tries the keys that its user believes.
    public = SSlibKey.from_crypto(key.private.public_key())
    public.keyid = ""
    envelope.sign(CryptoSigner(key.private, public))
    told: dict[str, Any] = envelope.to_dict()
    return told
