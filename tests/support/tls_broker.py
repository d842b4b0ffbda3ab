"""A Kafka that denies by default: TLS and SCRAM for users, and a log of each right they use."""

import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from topics import Settings
from topics.admin.acls import Grant, Role
from topics.embedded_broker.broker import EmbeddedBroker, Listener
from topics.embedded_broker.settings import free_port

KINDS = {
    "Topic": ResourceType.TOPIC,
    "Group": ResourceType.GROUP,
    "TransactionalId": ResourceType.TRANSACTIONAL_ID,
}
OPERATIONS = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Describe": AclOperation.DESCRIBE,
    "Create": AclOperation.CREATE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
}
# Where Kafka's audit log tells of a decision.
DECISION = re.compile(
    r"Principal = User:(?P<user>\S+) is (?P<verdict>Allowed|Denied) operation = (?P<operation>\w+)"
    r" .*? on resource = (?P<resource>\S+) for request = (?P<request>\w+)(?P<rule>.*)"
)


@dataclass(frozen=True)
class Decision:
    """One line of the authorizer's audit log."""

    user: str
    verdict: str
    operation: str
    resource: str
    request: str
    rule: str


@dataclass(frozen=True)
class SecuredKafka:
    """A running broker with two listeners: an open one for the tests, a guarded one for users."""

    broker: EmbeddedBroker
    users_at: str
    cafile: Path

    @property
    def for_tests(self) -> str:
        return self.broker.bootstrap_servers

    def env(self, user: str, password: str | None = None) -> dict[str, str]:
        """What a process of this user is started with."""
        return {
            "SHUNTER_BOOTSTRAP_SERVERS": self.users_at,
            "SHUNTER_SECURITY_PROTOCOL": "SASL_SSL",
            "SHUNTER_SASL_MECHANISM": "SCRAM-SHA-512",
            "SHUNTER_SASL_USERNAME": user,
            "SHUNTER_SASL_PASSWORD": password or password_of(user),
            "SHUNTER_SSL_CAFILE": str(self.cafile),
        }

    def settings(self, user: str, prefix: str, password: str | None = None) -> Settings:
        """The same as settings."""
        names = {k.removeprefix("SHUNTER_").lower(): v for k, v in self.env(user, password).items()}
        return Settings(**names, topic_prefix=prefix)  # type: ignore[arg-type]

    def librdkafka(self, user: str) -> dict[str, Any]:
        """The same as settings of confluent-kafka."""
        return {
            "bootstrap.servers": self.users_at,
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": user,
            "sasl.password": password_of(user),
            "ssl.ca.location": str(self.cafile),
        }

    def add_users(self, rights: Mapping[str, Iterable[Grant]]) -> None:
        """Make users that have these rights and no other."""
        admin = AdminClient({"bootstrap.servers": self.for_tests})
        scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        wanted = [
            UserScramCredentialUpsertion(user, scram, password_of(user).encode()) for user in rights
        ]
        acls = [binding(user, grant) for user, grants in rights.items() for grant in grants]
        for future in (
            *admin.alter_user_scram_credentials(wanted).values(),
            *(admin.create_acls(acls).values() if acls else ()),
        ):
            future.result(10)

    def decisions(self, user: str) -> list[Decision]:
        """What the authorizer has decided on this user until now."""
        text = self.broker.log_path.read_text()
        found = (Decision(**m.groupdict()) for m in DECISION.finditer(text))
        return [d for d in found if d.user == user]


def password_of(user: str) -> str:
    return f"secret-of-{user}"


def user_of(prefix: str, role: Role) -> str:
    return f"{prefix}-{role.label.replace(' ', '-')}"


def binding(user: str, grant: Grant) -> AclBinding:
    pattern = {"Literal": ResourcePatternType.LITERAL, "Prefixed": ResourcePatternType.PREFIXED}
    return AclBinding(
        KINDS[grant.resource],
        grant.name,
        pattern[grant.pattern],
        f"User:{user}",
        "*",
        OPERATIONS[grant.operation],
        AclPermissionType.ALLOW,
    )


def unused(decisions: Iterable[Decision], grants: Iterable[Grant]) -> list[Grant]:
    """The grants without which all would have gone as well.

    A grant counts as used where it allowed the very operation it is for, and so, with deny as
    the default, nothing else would have; that it lets its owner describe doesn't count.
    """
    allowed = [d for d in decisions if d.verdict == "Allowed"]
    return [grant for grant in grants if not any(_is_by(d, grant) for d in allowed)]


def _is_by(decision: Decision, grant: Grant) -> bool:
    operation = "DESCRIBE_CONFIGS" if grant.operation == "DescribeConfigs" else grant.operation
    acl = f"resourceName={grant.name}, patternType={grant.pattern.upper()},"
    return (
        decision.operation == operation.upper()
        and decision.resource.startswith(f"{grant.resource}:")
        and acl in decision.rule
    )


def certified(directory: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 that vouches for itself; return it, and it with its key."""
    key, certificate, both = (directory / name for name in ("key.pem", "cert.pem", "both.pem"))
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    both.write_text(key.read_text() + certificate.read_text())
    both.chmod(0o600)
    return certificate, both


@contextmanager
def secured_kafka(directory: Path) -> Iterator[SecuredKafka]:
    """Run one, with a certificate of its own making for 127.0.0.1."""
    certificate, both = certified(directory)
    port = free_port()
    users = "listener.name.users"
    broker = EmbeddedBroker(
        data_dir=directory / "kafka",
        extra_listeners=[Listener("USERS", port, port)],
        properties={
            "listener.security.protocol.map": (
                "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT,USERS:SASL_SSL"
            ),
            f"{users}.ssl.keystore.type": "PEM",
            f"{users}.ssl.keystore.location": str(both),
            f"{users}.sasl.enabled.mechanisms": "SCRAM-SHA-512",
            f"{users}.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "false",
            "super.users": "User:ANONYMOUS",
        },
    )
    with pytest.MonkeyPatch.context() as patch:
        # The audit log: each right that is used, and each that is missed; and each failed login.
        levels = {
            "kafka.authorizer.logger": "debug",
            "org.apache.kafka.common.network.Selector": "info",
        }
        options = [f"-Dorg.slf4j.simpleLogger.log.{n}={level}" for n, level in levels.items()]
        patch.setenv("JAVA_TOOL_OPTIONS", " ".join(options))
        broker.start()
    try:
        yield SecuredKafka(broker, f"127.0.0.1:{port}", certificate)
    finally:
        broker.stop()
