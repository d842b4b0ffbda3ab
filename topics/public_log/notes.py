"""Signed notes (c2sp.org/signed-note), checkpoints, and cosignatures of witnesses, on Ed25519."""

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from topics.signing.merkle import DIGEST_BYTES

# Signature types of the specification.
ED25519, COSIGNATURE_V1 = 0x01, 0x04
NOTE_BYTES_MAX = 256 * 1024
SIGNATURES_MAX = 100
KEY_ID_BYTES, PUBLIC_BYTES, SIGNATURE_BYTES, TIME_BYTES = 4, 32, 64, 8
_DASH = "— "
# A key's name: no Unicode space, no plus, nothing that is not printed.
_NAME = re.compile(r"[^\s+\x00-\x1f\x7f]{1,255}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
SIZE_MAX = 2**63 - 1


class NoteError(ValueError):
    """A note, key, checkpoint or proof that does not hold; the message says why."""


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key as a vkey names it: ``kind`` is the signature type, ``public`` 32 bytes."""

    name: str
    kind: int
    public: bytes

    @property
    def id(self) -> bytes:
        """The 4 bytes that stand before its signatures."""
        named = self.name.encode() + b"\n" + bytes([self.kind]) + self.public
        return hashlib.sha256(named).digest()[:KEY_ID_BYTES]

    @property
    def text(self) -> str:
        """The vkey, as policies and witnesses are given it."""
        material = base64.b64encode(bytes([self.kind]) + self.public).decode()
        return f"{self.name}+{self.id.hex()}+{material}"


def parse_vkey(text: str, kind: int) -> VerifierKey:
    """Return the key that a vkey names, of the kind that is wanted there.

    Raises:
        NoteError: it is none, of another kind, or its id is not that of its key.
    """
    parts = text.split("+", 2)
    if len(parts) != 3 or not _NAME.fullmatch(parts[0]):
        raise NoteError(f"no vkey: {text!r:.80}")
    material = unbase64(parts[2])
    if not material or material[0] != kind or len(material) != 1 + PUBLIC_BYTES:
        told = "of a log" if kind == ED25519 else "of a witness"
        raise NoteError(f"vkey of {parts[0]!r:.80}: not the Ed25519 key {told} (type {kind:#04x})")
    key = VerifierKey(parts[0], kind, material[1:])
    if parts[1] != key.id.hex():
        raise NoteError(f"vkey of {parts[0]!r:.80}: the id is not that of the key")
    return key


@dataclass(frozen=True, slots=True)
class NoteKey:
    """A private key that signs notes under a name, which for a log is its origin."""

    name: str
    private: Ed25519PrivateKey

    @property
    def verifier(self) -> VerifierKey:
        """Its public half."""
        return VerifierKey(self.name, ED25519, self.private.public_key().public_bytes_raw())

    def sign(self, text: str) -> str:
        """Return the signature line of a note's text, with its newline."""
        return line_of(self.verifier, self.private.sign(text.encode()))

    @property
    def text(self) -> str:
        """The key as Go's ``note.NewSigner`` reads it: a secret."""
        verifier = self.verifier
        seed = base64.b64encode(bytes([ED25519]) + self.private.private_bytes_raw()).decode()
        return f"PRIVATE+KEY+{self.name}+{verifier.id.hex()}+{seed}"


def parse_note_key(text: str) -> NoteKey:
    """Return the key of a text as ``NoteKey.text`` gives it.

    Raises:
        NoteError: it is none. The message holds nothing of it.
    """
    parts = text.strip().split("+", 4)
    if len(parts) != 5 or parts[:2] != ["PRIVATE", "KEY"] or not _NAME.fullmatch(parts[2]):
        raise NoteError("no private key of notes")
    material = unbase64(parts[4])
    if len(material) != 1 + PUBLIC_BYTES or material[0] != ED25519:
        raise NoteError("no Ed25519 key")
    key = NoteKey(parts[2], Ed25519PrivateKey.from_private_bytes(material[1:]))
    if key.verifier.id.hex() != parts[3]:
        raise NoteError("its id is not that of the key")
    return key


def make_note_key(name: str) -> NoteKey:
    """Return a new key of this name.

    Raises:
        NoteError: keys can't be named so.
    """
    if not _NAME.fullmatch(name):
        raise NoteError(f"a log can't be named {name!r:.80}: no spaces, no plus, at most 255")
    return NoteKey(name, Ed25519PrivateKey.generate())


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line of a note; ``signature`` is what follows the key's id."""

    name: str
    id: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class SignedNote:
    """A note: its text, which ends in a newline, and its signatures."""

    text: str
    signatures: Sequence[NoteSignature]

    def of(self, key: VerifierKey) -> bytes | None:
        """Return the first signature that bears a key's name and id, whether it holds or not."""
        for each in self.signatures:
            if each.name == key.name and each.id == key.id:
                return each.signature
        return None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of a log: ``root`` is the hash of the tree of its first ``size`` entries."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The note's text."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def parse_note(data: bytes) -> SignedNote:
    """Return a note, none of whose signatures are checked yet.

    Raises:
        NoteError: it is none.
    """
    if len(data) > NOTE_BYTES_MAX:
        raise NoteError(f"a note of {len(data)} bytes; {NOTE_BYTES_MAX} are read")
    try:
        whole = data.decode()
    except UnicodeDecodeError as error:
        raise NoteError("a note that is not UTF-8") from error
    text, found, rest = whole.rpartition("\n\n")
    if not found or any(character < " " and character != "\n" for character in whole):
        raise NoteError("no signed note: a text, an empty line, and signatures")
    return SignedNote(text + "\n", parse_signatures(rest))


def parse_signatures(text: str) -> list[NoteSignature]:
    """Return the signatures of lines, each of which ends in a newline.

    Raises:
        NoteError: a line is no signature, or there is none.
    """
    if not text.endswith("\n"):
        raise NoteError("the last signature has no end")
    lines = text[:-1].split("\n")
    if len(lines) > SIGNATURES_MAX:
        raise NoteError(f"{len(lines)} signatures; {SIGNATURES_MAX} are read")
    found = []
    for line in lines:
        name, _, signed = line.removeprefix(_DASH).partition(" ")
        material = unbase64(signed)
        if not line.startswith(_DASH) or not _NAME.fullmatch(name) or len(material) <= KEY_ID_BYTES:
            raise NoteError(f"no signature: {line!r:.80}")
        found.append(NoteSignature(name, material[:KEY_ID_BYTES], material[KEY_ID_BYTES:]))
    return found


def parse_checkpoint(text: str) -> Checkpoint:
    """Return the checkpoint that a note's text is; lines beyond the third are left aside.

    Raises:
        NoteError: it is none.
    """
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
        raise NoteError("no checkpoint: origin, size and hash, a line each")
    root = unbase64(lines[2])
    if not _SIZE.fullmatch(lines[1]) or int(lines[1]) > SIZE_MAX or len(root) != DIGEST_BYTES:
        raise NoteError(f"no checkpoint: the size is {lines[1]!r:.40}, the hash {lines[2]!r:.60}")
    return Checkpoint(lines[0], int(lines[1]), root)


def is_signed_by(note: SignedNote, key: VerifierKey) -> bool:
    """Return whether a log's key has signed the note.

    Raises:
        NoteError: a signature bears the key's name and id, and does not hold.
    """
    signature = note.of(key)
    if signature is None:
        return False
    _check(key, signature, note.text.encode())
    return True


def cosigned_at(note: SignedNote, key: VerifierKey) -> int | None:
    """Return when a witness cosigned the checkpoint, epoch seconds; None if it didn't.

    Raises:
        NoteError: a signature bears the witness's name and id, and does not hold.
    """
    signature = note.of(key)
    if signature is None:
        return None
    at = int.from_bytes(signature[:TIME_BYTES], "big")
    if not 0 < at <= SIZE_MAX:
        raise NoteError(f"the cosignature of {key.name} has no time")
    _check(key, signature[TIME_BYTES:], cosigned_text(note.text, at))
    return at


def cosigned_text(text: str, at: int) -> bytes:
    """Return what a witness signs of a checkpoint at a time, epoch seconds."""
    return f"cosignature/v1\ntime {at}\n{text}".encode()


def line_of(key: VerifierKey, signature: bytes) -> str:
    """Return the line of a signature, with its newline."""
    return f"{_DASH}{key.name} {base64.b64encode(key.id + signature).decode()}\n"


def unbase64(text: str) -> bytes:
    """Return the bytes of standard base64, in the one form that encodes them.

    Raises:
        NoteError: it is none.
    """
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NoteError(f"no base64: {text!r:.60}") from error
    if base64.b64encode(found).decode() != text:
        raise NoteError(f"base64 of another form: {text!r:.60}")
    return found


def _check(key: VerifierKey, signature: bytes, message: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise NoteError(f"the signature of {key.name} is wrong") from error
