"""Signing: chains over aborts and takeovers, keys and their files, digests and their salts."""

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from audit_cases import Office
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from memory_log import Crash, MemoryLog, ProcessKilledError
from notary_cases import CHAIN, roots, router
from stream_cases import START, Yard, drain, make_digests, make_key, make_signer

from shunter.audit.keyring import KeyProblem, Keyring
from streams.engine.log import Outgoing, Partition, Record
from streams.engine.stage import Effect
from streams.evidence.salt_follower import SaltFollower
from topics import Catalogue, KeyEntry, Salt, Settings, decode, encode
from topics.signing.key_files import KeyFileError
from topics.signing.keys import SigningKeyError, load_signing_key, write_signing_key
from topics.signing.salts import digest_key, salt_key, text_digest
from topics.signing.signed_root import ChainHead, is_signed, sign


async def test_a_refused_record_leaves_no_gap_and_what_takes_its_place_is_signed() -> None:
    yard = Yard()
    yard.cluster.refuse = lambda record: record.key == b"bad" and "pool" in record.topic
    for name in ("a", "bad", "c"):
        yard.publish(id=name)
    await drain(await yard.run(router(yard)))
    yard.publish(id="d")
    yard.cluster.members.clear()
    await drain(await yard.run(router(yard), MemoryLog(yard.cluster, "b")))
    statements = [root.statement for root in roots(yard)]
    assert [(s.sequence, s.count) for s in statements] == [(0, 4), (1, 1)]
    assert [e.step for e in yard.evidence() if e.request_id == "bad"] == [
        "dead_lettered",
        "failed",
    ]


@pytest.mark.parametrize("point", ["begin", "send", "append", "commit", "committed"])
async def test_a_successor_goes_on_with_the_chain_wherever_its_predecessor_died(point: Any) -> None:
    yard = Yard()
    yard.publish(id="a")
    transactor = await yard.run(router(yard))
    await drain(transactor)
    yard.publish(id="b")
    yard.cluster.crash = Crash(point)
    with pytest.raises(ProcessKilledError):
        await drain(transactor)
    yard.cluster.crash = None
    yard.cluster.members.clear()
    yard.publish(id="c")
    await drain(await yard.run(router(yard), MemoryLog(yard.cluster, "successor")))
    found = [root.statement for root in roots(yard)]
    assert [s.sequence for s in found] == list(range(len(found)))
    assert sum(s.count for s in found) == 3
    office = Office()
    office.yard = yard
    entry = KeyEntry(published=make_key().publish("test", START))
    name = (entry.name or "").encode()
    yard.cluster.publish(Outgoing(yard.catalogue.evidence_keys, name, encode(entry)))
    findings = await office.trail().verified()
    assert findings.is_good, findings.problems


async def test_a_transaction_without_evidence_has_no_root_and_keeps_the_head() -> None:
    signer = make_signer(Catalogue(Settings(topic_prefix="yard")), Yard().clock)
    head = ChainHead(4, "ab", START)
    assert signer.seal("chain", head, []) == ([], head)


def test_a_root_is_never_before_its_key_nor_its_predecessor() -> None:
    yard = Yard()
    signer = make_signer(yard.catalogue, yard.clock)
    signer.publish()
    effects = [Effect(None, [Outgoing(yard.catalogue.evidence, b"a", b"{}")])]
    yard.clock.at -= 100.0
    _, head = signer.seal(CHAIN, ChainHead(0, "00", START + 5.0), effects)
    assert head is not None
    assert (head.sequence, head.at) == (1, START + 5.0)
    _, first = signer.seal(CHAIN, None, effects)
    assert first is not None
    assert first.at == START


def test_a_key_file_is_made_for_its_owner_alone_and_replaced_with_a_voucher(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    old = Ed25519PrivateKey.generate()
    write_signing_key(path, [old], START)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = load_signing_key(path)
    write_signing_key(path, [Ed25519PrivateKey.generate(), old], START + 60)
    second = load_signing_key(path)
    published = second.publish("router/a", START + 900, valid_s=100.0)
    # However often it is published: compaction keeps the last.
    assert published == second.publish("router/a", START + 990, valid_s=100.0)
    statement = published.statement
    assert (statement.valid_from, statement.valid_until) == (START + 60, START + 160)
    keyring = Keyring(trusted=frozenset({first.id}))
    keyring.add(KeyEntry(published=first.publish("router/a", START)), "first")
    keyring.add(KeyEntry(published=published), "second")
    assert keyring.check(second.id, "router/a", START + 60)
    unendorsed = Keyring(trusted=frozenset({first.id}))
    unendorsed.add(KeyEntry(published=replace(published, endorser=None, endorsement=None)), "")
    with pytest.raises(KeyProblem, match="not among those trusted"):
        unendorsed.check(second.id, "router/a", START + 60)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match=r"mode is 0644.*chmod 600"):
        load_signing_key(path)


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "no PEM private key"), (b"x-----END PRIVATE KEY-----", "readable")]
)
def test_a_bad_key_file_is_told(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(SigningKeyError, match=told):
        load_signing_key(path)
    with pytest.raises(SigningKeyError, match="No such file"):
        load_signing_key(tmp_path / "none.pem")


def test_each_start_without_a_file_has_a_key_of_its_own() -> None:
    assert load_signing_key(None).id != load_signing_key(None).id


def test_a_signature_for_one_purpose_is_none_for_another() -> None:
    key = make_key()
    statement = {"a": 1}
    signature = sign(key.private, "key", statement)
    public = key.private.public_key()
    assert is_signed(public, "key", statement, signature)
    assert not is_signed(public, "root", statement, signature)
    assert not is_signed(public, "key", {"a": 2}, signature)
    assert not is_signed(public, "key", statement, "no base64 !")


def test_a_key_that_its_holder_has_not_signed_is_set_aside() -> None:
    published = make_key(1).publish("router/a", START)
    keyring = Keyring()
    keyring.add(KeyEntry(published=replace(published, signature="AAAA")), "first")
    other = replace(published.statement, key=make_key(2).id)
    keyring.add(KeyEntry(published=replace(published, statement=other)), "second")
    assert [where for where, _ in keyring.refused] == ["first", "second"]
    assert not list(keyring.published())


class TestDigests:
    catalogue = Catalogue(Settings(topic_prefix="yard"))

    def test_only_who_has_salt_and_secret_can_compare(self) -> None:
        digests = make_digests(self.catalogue)
        found = digests.digest("acme", {"b": 1.0, "a": "text"})
        (written,) = digests.unwritten()
        salt = decode(Salt, written.value or b"")
        assert found is not None
        assert found.salt == salt.id
        # As JSON it is the same text.
        key = digest_key(salt, b"secret")
        assert text_digest(key, {"a": "text", "b": 1}) == found.hmac
        assert text_digest(digest_key(salt, None), {"a": "text", "b": 1}) != found.hmac
        assert text_digest(key, {"a": "text", "b": 2}) != found.hmac

    def test_tenants_don_t_share_salts_and_one_is_kept(self) -> None:
        digests = make_digests(self.catalogue)
        names = {t: digests.digest(t, "x") for t in ("a", "b")}
        assert names["a"] != names["b"]
        assert digests.digest("a", "x") == names["a"]

    def test_a_salt_is_written_with_each_transaction_until_one_commits(self) -> None:
        digests = make_digests(self.catalogue)
        digests.digest("a", "x")
        (first,) = digests.unwritten()
        assert [r.key for r in digests.unwritten()] == [first.key]
        digests.written([first])
        assert digests.unwritten() == []

    def test_a_forgotten_tenant_gets_another_salt(self) -> None:
        digests = make_digests(self.catalogue)
        follower = SaltFollower(Settings(topic_prefix="yard"), digests)
        before = digests.digest("a/b", "x")
        assert before is not None
        follower.take(self.record(salt_key("a/b", before.salt), None))
        after = digests.digest("a/b", "x")
        assert after is not None
        assert after.salt != before.salt

    def test_a_salt_of_another_process_is_used(self) -> None:
        mine, theirs = make_digests(self.catalogue), make_digests(self.catalogue)
        theirs.digest("b", "x")
        expected = theirs.digest("a", "x")
        follower = SaltFollower(Settings(topic_prefix="yard"), mine)
        for written in theirs.unwritten():
            follower.take(self.record(written.key, written.value))
        follower.take(self.record(b"x/y", b"no salt"))
        assert mine.digest("a", "x") == expected
        assert mine.unwritten() == []

    def record(self, key: bytes | None, value: bytes | None) -> Record:
        return Record(Partition(self.catalogue.evidence_salts, 0), 0, key, value, [], 0)
