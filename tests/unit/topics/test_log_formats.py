"""Notes, policies, tiles and proofs, as C2SP has them."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from public_log_cases import KEY, ORIGIN, PlainWitness

from topics.public_log.notes import (
    COSIGNATURE_V1,
    ED25519,
    Checkpoint,
    NoteError,
    cosigned_at,
    is_signed_by,
    make_note_key,
    parse_checkpoint,
    parse_note,
    parse_note_key,
    parse_vkey,
)
from topics.public_log.policy import parse_policy
from topics.public_log.proofs import check_log_proof, format_log_proof
from topics.public_log.tiles import (
    EMPTY_ROOT,
    TiledTree,
    bundle_of,
    entries_of,
    tile_path,
    tile_width,
)
from topics.signing.merkle import inclusion_path, leaf_hash, tree_hash

# The examples of the specifications of signed notes and of cosignatures.
SPEC_VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
SPEC_NOTE = (
    "This is an example message.\n\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONn"
    "cAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
).encode()


def test_the_example_of_the_specification_is_signed() -> None:
    assert is_signed_by(parse_note(SPEC_NOTE), parse_vkey(SPEC_VKEY, ED25519))
    assert parse_vkey(SPEC_VKEY, ED25519).text == SPEC_VKEY


def test_another_text_under_the_signature_is_refused() -> None:
    changed = parse_note(SPEC_NOTE.replace(b"an example", b"my example"))
    with pytest.raises(NoteError, match=r"example\.com/foo is wrong"):
        is_signed_by(changed, parse_vkey(SPEC_VKEY, ED25519))


def test_a_key_survives_its_file() -> None:
    key = make_note_key("log.example.com/x")
    again = parse_note_key(key.text + "\n")
    assert (again.name, again.verifier) == (key.name, key.verifier)
    with pytest.raises(NoteError) as refused:
        parse_note_key(key.text[:-4] + "AAA=")
    assert key.text[-20:-4] not in str(refused.value)


@pytest.mark.parametrize("name", ["", "two words", "a+b", "a\u00a0b", "line\n"])
def test_no_key_has_a_name_that_notes_cannot_have(name: str) -> None:
    with pytest.raises(NoteError, match="can't be named"):
        make_note_key(name)


@pytest.mark.parametrize(
    ("vkey", "why"),
    [
        ("example.com/foo", "no vkey"),
        (SPEC_VKEY.replace("530d903a", "530d903b"), "the id is not that of the key"),
        (SPEC_VKEY.replace("Aeky", "BOky"), "not the Ed25519 key of a log"),
        (SPEC_VKEY[:-4], "not the Ed25519 key|no base64"),
    ],
)
def test_a_vkey_that_is_none_is_refused(vkey: str, why: str) -> None:
    with pytest.raises(NoteError, match=why):
        parse_vkey(vkey, ED25519)


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"text\n",
        b"text\n\n",
        b"text\n\n- a AAAAAAAA\n",
        "text\n\n— a AAAAAAAA".encode(),
        "text\n\n— a b AAAAAAAA\n".encode(),
        "te\txt\n\n— a AAAAAAAA\n".encode(),
        b"\xff\n\n",
        "text\n\n— a AAAAAA\n".encode(),
    ],
)
def test_what_is_no_note_is_refused(note: bytes) -> None:
    with pytest.raises(NoteError):
        parse_note(note)


@given(st.binary(max_size=300))
def test_no_input_breaks_the_parsers(data: bytes) -> None:
    for parse in (parse_note, parse_policy):
        try:
            parse(data)
        except NoteError:
            continue


@pytest.mark.parametrize("size", ["-1", "01", "+1", "1_0", "", "9223372036854775808", "²"])
def test_a_size_is_a_plain_number(size: str) -> None:
    root = base64.b64encode(EMPTY_ROOT).decode()
    assert parse_checkpoint(f"o\n12\n{root}\nextension\n").size == 12
    with pytest.raises(NoteError, match="no checkpoint"):
        parse_checkpoint(f"o\n{size}\n{root}\n")


def test_a_cosignature_of_another_time_is_refused() -> None:
    witness = PlainWitness("w", at=lambda: 1_700_000_000.0)
    text = Checkpoint("o", 3, EMPTY_ROOT).text
    line = witness.cosign(text)
    note = parse_note(f"{text}\n{line}".encode())
    assert cosigned_at(note, witness.verifier) == 1_700_000_000
    signature = note.signatures[0].signature
    later = (1_700_000_001).to_bytes(8, "big") + signature[8:]
    moved = base64.b64encode(witness.verifier.id + later).decode()
    with pytest.raises(NoteError, match="the signature of w is wrong"):
        cosigned_at(parse_note(f"{text}\n— w {moved}\n".encode()), witness.verifier)


def policy_of(count: int, quorum: str) -> tuple[str, list[PlainWitness]]:
    witnesses = [PlainWitness(f"w{n}") for n in range(count)]
    lines = "".join(f"witness {w.name} {w.verifier.text}\n" for w in witnesses)
    return f"# whom I believe\nlog\t{KEY.verifier.text}\n{lines}{quorum}", witnesses


def test_a_quorum_is_counted_by_groups() -> None:
    text, _ = policy_of(
        5, "group x 2 w0 w1 w2\ngroup y any w3 w4\n\ngroup both all x y\nquorum both\n"
    )
    policy = parse_policy(text.encode())
    assert policy.is_met({"w0", "w2", "w4"})
    assert not policy.is_met({"w0", "w1", "w2"})
    assert not policy.is_met({"w0", "w3", "w4"})


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("", "no quorum line"),
        ("quorum none\nquorum none\n", "line 6: a second quorum"),
        ("quorum w9\n", "no witness and no group"),
        ("group g 3 w0 w1\nquorum g\n", "'3' of 2"),
        ("group g 0 w0 w1\nquorum g\n", "'0' of 2"),
        ("group g any w0 w0\nquorum g\n", "each counts once"),
        ("group g any w0\ngroup f any g w0\nquorum f\n", "each counts once"),
        ("group w0 any w1\nquorum w0\n", "is taken"),
        ("group g any later\n", "no witness and no group"),
        ("believe everybody\n", "neither log, witness, group nor quorum"),
        ("quorum none\r\n", "no control characters"),
    ],
)
def test_a_policy_that_is_none_names_the_line(lines: str, why: str) -> None:
    text, _ = policy_of(2, lines)
    with pytest.raises(NoteError, match=why):
        parse_policy(text.encode())


def test_a_key_counts_once_whatever_it_is_called() -> None:
    first = PlainWitness("w0")
    second = PlainWitness("w1", first.key)
    lines = f"witness a {first.verifier.text}\nwitness b {second.verifier.text}\nquorum none\n"
    with pytest.raises(NoteError, match="stands there twice"):
        parse_policy(lines.encode())


def tree_of(size: int) -> tuple[list[bytes], TiledTree]:
    leaves = [leaf_hash(b"%d" % n) for n in range(size)]
    levels = [leaves]
    while len(levels[-1]) >= 256:
        below = levels[-1]
        levels.append([tree_hash(below[i : i + 256]) for i in range(0, len(below) - 255, 256)])

    def read(level: int, index: int, width: int) -> bytes:
        assert width == tile_width(size, level, index)
        return b"".join(levels[level][index * 256 : index * 256 + width])

    return leaves, TiledTree(size, read)


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 600, 65_536, 65_793])
def test_tiles_give_the_tree_and_its_paths(size: int) -> None:
    leaves, tree = tree_of(size)
    assert tree.root() == tree_hash(leaves)
    for index in {0, size // 3, size - 1}:
        assert tree.inclusion(index) == inclusion_path(leaves, index)
    for old in {1, size // 2 or 1, size}:
        assert tree.root(old) == tree_hash(leaves[:old])


@pytest.mark.parametrize(
    ("index", "path"),
    [(0, "000"), (999, "999"), (1000, "x001/000"), (1_234_067, "x001/x234/067")],
)
def test_a_path_has_three_digits_a_folder(index: int, path: str) -> None:
    assert tile_path(1, index) == f"tile/1/{path}"
    assert tile_path(None, index, 7) == f"tile/entries/{path}.p/7"


def test_a_bundle_holds_what_was_put_in_and_nothing_else() -> None:
    entries = [b"", b"a", b"b" * 65_535]
    bundle = bundle_of(entries)
    assert list(entries_of(bundle, 3)) == entries
    for wrong, count in ((bundle, 2), (bundle, 4), (bundle[:-1], 3), (b"\x00", 1)):
        with pytest.raises(NoteError, match="bundle"):
            list(entries_of(wrong, count))
    with pytest.raises(NoteError, match="at most 65535"):
        bundle_of([b"c" * 65_536])


def test_a_proof_is_of_one_entry_and_one_checkpoint() -> None:
    _, tree = tree_of(300)
    text = Checkpoint(ORIGIN, 300, tree.root()).text
    signed = f"{text}\n{KEY.sign(text)}".encode()
    policy = parse_policy(f"log {KEY.verifier.text}\nquorum none\n".encode())
    proof = format_log_proof(7, tree.inclusion(7), signed)
    assert check_log_proof(proof, b"7", policy)[0] == 7
    extra = proof.replace("\n", "\nextra AAAA\n", 1)
    assert check_log_proof(extra, b"7", policy)[0] == 7
    for wrong in (
        proof.replace("index 7", "index 8"),
        proof.replace("index 7", "index 07"),
        proof.replace("tlog-proof@v1", "tlog-proof@v2"),
        "\n".join(line for n, line in enumerate(proof.split("\n")) if n != 3),
    ):
        with pytest.raises(NoteError):
            check_log_proof(wrong, b"7", policy)
    with pytest.raises(NoteError, match="another entry there"):
        check_log_proof(proof, b"8", policy)


def test_a_cosignature_vkey_is_no_log() -> None:
    text, witnesses = policy_of(1, "quorum none\n")
    vkey = parse_policy(text.encode()).witnesses["w0"].key.text
    assert len(witnesses) == 1
    with pytest.raises(NoteError, match="not the Ed25519 key of a log"):
        parse_policy(f"log {vkey}\nquorum none\n".encode())
    with pytest.raises(NoteError, match="not the Ed25519 key of a witness"):
        parse_vkey(SPEC_VKEY, COSIGNATURE_V1)
