"""Listeners that ask who comes: TLS, client certificates, SCRAM and PLAIN, and what opens each."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from tls_broker import certified, password_of

from topics.embedded_broker.jars import KAFKA_VERSION

USER = "shunter"
SECRET = password_of(USER)
MECHANISMS = {
    "SCRAM-SHA-256": ScramMechanism.SCRAM_SHA_256,
    "SCRAM-SHA-512": ScramMechanism.SCRAM_SHA_512,
}


@dataclass(frozen=True)
class Door:
    """A kind of listener; TLS without a mechanism asks clients for a certificate, too."""

    protocol: str
    mechanism: str = ""

    @property
    def name(self) -> str:
        """The listener's name in Kafka's settings."""
        return f"DOOR_{self.protocol}_{self.mechanism}".rstrip("_").replace("-", "_")


EVERY = (
    Door("SSL"),
    Door("SASL_SSL", "SCRAM-SHA-512"),
    Door("SASL_SSL", "SCRAM-SHA-256"),
    Door("SASL_SSL", "PLAIN"),
    Door("SASL_PLAINTEXT", "SCRAM-SHA-512"),
    Door("SASL_PLAINTEXT", "PLAIN"),
)
# Brokers with KRaft keep no password of SCRAM before 3.5.
HAS_SCRAM = tuple(map(int, KAFKA_VERSION.split("."))) >= (3, 5)
ALL = tuple(door for door in EVERY if HAS_SCRAM or door.mechanism not in MECHANISMS)


class Doors:
    """Doors of a broker, with a certificate that both sides have, and one user."""

    def __init__(self, doors: Iterable[Door], directory: Path, session_ms: int) -> None:
        """Make the certificate; a login ends after so many milliseconds (KIP-368)."""
        self._doors = tuple(doors)
        self._certificate, self._both = certified(directory)
        self._session_ms = session_ms

    @property
    def properties(self) -> dict[str, str]:
        """Settings of the broker beside those of its open listeners."""
        protocols = {"CLIENT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT"}
        protocols |= {door.name: door.protocol for door in self._doors}
        found = {"listener.security.protocol.map": ",".join(map(":".join, protocols.items()))}
        for door in self._doors:
            at = f"listener.name.{door.name.lower()}"
            if door.protocol.endswith("SSL"):
                found |= {
                    f"{at}.ssl.keystore.type": "PEM",
                    f"{at}.ssl.keystore.location": str(self._both),
                }
            if door.protocol == "SSL":
                found |= {
                    f"{at}.ssl.truststore.type": "PEM",
                    f"{at}.ssl.truststore.location": str(self._certificate),
                    f"{at}.ssl.client.auth": "required",
                }
            if door.mechanism:
                found |= self._login(at, door.mechanism)
        return found

    def _login(self, at: str, mechanism: str) -> dict[str, str]:
        module = "scram.ScramLoginModule required"
        if mechanism == "PLAIN":
            module = f'plain.PlainLoginModule required user_{USER}="{SECRET}"'
        of = f"{at}.{mechanism.lower()}"
        return {
            f"{at}.sasl.enabled.mechanisms": mechanism,
            f"{of}.sasl.jaas.config": f"org.apache.kafka.common.security.{module};",
            f"{of}.connections.max.reauth.ms": str(self._session_ms),
        }

    def variables(self, door: Door) -> dict[str, str]:
        """What a process is started with to come in."""
        found = {"SHUNTER_SECURITY_PROTOCOL": door.protocol}
        if door.protocol.endswith("SSL"):
            found["SHUNTER_SSL_CAFILE"] = str(self._certificate)
        if door.protocol == "SSL":
            found["SHUNTER_SSL_CERTFILE"] = str(self._both)
        if door.mechanism:
            found |= {
                "SHUNTER_SASL_MECHANISM": door.mechanism,
                "SHUNTER_SASL_USERNAME": USER,
                "SHUNTER_SASL_PASSWORD": SECRET,
            }
        return found

    def add_user(self, bootstrap_servers: str) -> None:
        """Make the user's SCRAM passwords; the one of PLAIN stands in the broker's settings."""
        asked = {d.mechanism for d in self._doors} & MECHANISMS.keys()
        if not asked:
            return
        admin = AdminClient({"bootstrap.servers": bootstrap_servers})
        wanted = [
            UserScramCredentialUpsertion(
                USER, ScramCredentialInfo(MECHANISMS[name], 4096), SECRET.encode()
            )
            for name in sorted(asked)
        ]
        for each in wanted:
            for made in admin.alter_user_scram_credentials([each]).values():
                made.result(10)
