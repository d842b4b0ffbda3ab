"""Settings of a process: ``SHUNTER_*`` environment variables, or flags that override them."""

import socket
import ssl
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from topics.signing.key_files import check_key_file

MIB = 1024 * 1024
# Of evidence. Articles 19 and 26 (6) of Regulation (EU) 2024/1689 ask for six months of logs at
# least, up to 184 days; the rest is for clocks, and for who looks on the last day.
RETENTION_DAYS = {"standard": 30, "eu-ai-act": 200}


Networks = tuple[IPv4Network | IPv6Network, ...]


def networks_of(text: str) -> Networks:
    """Return the networks of a list separated by commas, or addresses. Raises ValueError."""
    found: list[IPv4Network | IPv6Network] = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        try:
            found.append(ip_network(part, strict=False))
        except ValueError as error:
            raise ValueError(f"{part!r:.60} is no network, such as 10.0.0.0/8 or ::1") from error
    return tuple(found)


class Settings(BaseSettings):
    """Settings of one process of Shunter; printed at start with secrets masked."""

    model_config = SettingsConfigDict(env_prefix="SHUNTER_", frozen=True, extra="forbid")

    bootstrap_servers: str = "127.0.0.1:9092"
    """Kafka brokers, ``host:port`` separated by commas."""
    topic_prefix: str = Field(default="inference", pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$")
    """What all topic, group and transaction names begin with."""
    fleet: Path | None = None
    """YAML of devices, models and pools; the packaged fleet where unset."""
    policy: Path | None = None
    """YAML of classes, tiers, data classes and windows; the packaged policy where unset."""
    instance: str = Field(default_factory=socket.gethostname, max_length=128)
    """Name of this process among its kind: its Kafka static membership and the evidence's writer.
    Stable across restarts, so that a quick restart takes its partitions back at once. Unset, the
    host's name, with a number behind it where other processes of the kind run there."""
    state_dir: Path | None = None
    """Directory of the locks on names; unset, `shunter` in XDG_STATE_HOME or `~/.local/state`, or
    one in the directory for temporary files where that can't be written."""

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None

    partitions: int = Field(default=4, ge=1, le=1024)
    """Partitions of the ingest topic and of all that are co-partitioned with it."""
    replication_factor: int = Field(default=-1, ge=-1)
    """Replicas of each topic; -1 for 3 where there are as many brokers, else one on each, and the
    default of a lone one."""
    request_bytes_max: int = Field(default=1 * MIB, ge=1024, le=8 * MIB)
    """Longest request value served; a longer one is dead-lettered."""
    batch_bytes_max: int = Field(default=32 * MIB, ge=16 * MIB, le=1024 * MIB)
    """Most bytes that a compressed record batch may unpack to; one beyond it is dead-lettered. A
    poll has about as many of a partition."""
    poll_records_max: int = Field(default=100, ge=1, le=10_000)
    """Most records that one poll takes, of each partition where they are decided on at once; an
    urgent one waits for those before it in its poll."""
    poll_s_max: float = Field(default=0.1, gt=0, le=5)
    """Longest that a poll waits for records; a rebalance waits no longer than this for the loop."""
    duplicate_window_records: int = Field(default=100_000, ge=0, le=10_000_000)
    """Records of an ingest partition among which an id is served once; 0 serves each."""
    held_payload_bytes_max: int = Field(default=256 * MIB, ge=0)
    """Most payload bytes, headers included, that a batcher keeps; more are re-read from the log."""
    held_records_max: int = Field(default=1_000_000, ge=1)
    """Most requests that a batcher has in its windows; more stay unread in the log."""
    in_flight_max: int = Field(default=1024, ge=1, le=100_000)
    """Requests that a worker has taken and not finished, over both lanes, at which it takes no
    more; the poll that reaches it may go beyond, by less than ``poll_records_max``."""
    in_flight_bytes_max: int = Field(default=64 * MIB, ge=1)
    """Their bytes as they came, headers included, at which a worker takes no more; the poll that
    reaches it may go beyond, by what the client has fetched."""
    session_timeout_ms: int = Field(default=10_000, ge=6000)
    """How long Kafka waits for a silent member before its partitions go to another."""
    transaction_timeout_ms: int = Field(default=10_000, ge=1000)
    """How long a dead process's open transaction may block readers (docs/decisions/0002)."""
    heartbeat_s: float = Field(default=1.0, gt=0, le=60)
    """Time between a worker's reports of its load."""
    drain_s_max: float = Field(default=10.0, ge=0)
    """How long a stopping worker waits for what runs; the rest is left for its successor."""

    evidence_key: Path | None = None
    """PEM file of the key that signs evidence (`shunter evidence keygen`); where unset, a new key
    at each start, whose private half never leaves the process."""
    evidence_key_valid_s: float | None = Field(default=None, gt=0)
    """How long the key may sign, from when it was made; unset for as long as it isn't revoked."""
    evidence_introducer: Path | None = None
    """PEM file of a key that introduces the process's own to verifiers (`shunter evidence
    introduce`): one that the installation key has introduced for that, or in a demo that itself."""
    evidence_secret: SecretStr | None = None
    """What digests of texts are keyed with beside the tenant's salt; the same for all processes."""
    evidence_heads_s: float = Field(default=10.0, gt=0, le=3600)
    """Time between a process's signed reports of its chains' last roots."""

    key_secret: SecretStr | None = None
    """What a gateway proves API keys with to routers; the same for all of them."""
    quote_secret: SecretStr | None = None
    """What routers sign quotes with; the same for all of them. Where unset, nothing is quoted."""
    retention: Literal["standard", "eu-ai-act"] = "standard"
    """How long evidence stays: 30 days on its topic, or 200 with ``eu-ai-act``, whose logs are to
    be had for six months; an archive then keeps as many days at least."""

    archive: str | None = None
    """Directory or URL (of fsspec) that `shunter evidence archive` writes to."""
    archive_every_s: float = Field(default=300.0, gt=0, le=86_400)
    """Time between two rounds of the archiver; each writes what has come."""
    archive_rows_max: int = Field(default=200_000, ge=1)
    """Most records of one file."""
    archive_days: int | None = Field(default=None, ge=1)
    """Days after which archived evidence is deleted; unset keeps it for ever."""
    archive_holds: str = ""
    """Legal hold: days that are never deleted, `2026-01-01..2026-03-31`, separated by commas."""

    public_log: str | None = None
    """Directory or URL (of fsspec) that `shunter evidence log` writes to."""
    public_log_key: Path | None = None
    """File of the key that signs its checkpoints (`shunter evidence log-keygen`)."""
    public_log_policy: Path | None = None
    """Policy of its witnesses (c2sp.org/tlog-policy), each with the URL to submit to."""
    public_log_every_s: float = Field(default=5.0, gt=0, le=3600)
    """Time between two rounds of the log; each appends and publishes what has come."""

    web_host: str = "127.0.0.1"
    """Where the web server of a router or worker listens."""
    web_port: int = Field(default=0, ge=0, le=65535)
    """Its port; 0 switches it off."""
    web_page: bool | None = None
    """Whether a router serves the live view and the stories of requests there, to whoever reaches
    it; unset, only where `web_host` is a loopback address."""
    metrics_tenants_max: int = Field(default=20, ge=0, le=1000)
    """Most tenants that metrics name, those of the policy first; the others are one, ``other``."""

    gateway_host: str = "127.0.0.1"
    """Where the gateway listens."""
    gateway_port: int = Field(default=8400, ge=0, le=65535)
    """Its port; 0 takes a free one, which the log names."""
    gateway_keys: Path | None = None
    """YAML of the digests of API keys; unset, any key is the tenant ``default``, on loopback."""
    gateway_open_max: int = Field(default=1000, ge=1, le=100_000)
    """Requests open at once at one gateway."""
    gateway_body_bytes_max: int = Field(default=64 * MIB, ge=1)
    """Bytes of bodies together that have come to one gateway, and that Kafka has not taken yet."""
    gateway_read_s_max: float = Field(default=30.0, gt=0, le=3600)
    """How long a client may take for a whole head, and for a whole JSON body."""
    gateway_answer_s_max: float = Field(default=600.0, gt=0, le=7 * 86400)
    """How long a request whose client names no deadline may hear nothing of its answer."""
    gateway_reclaim_s: float = Field(default=10.0, ge=0, le=3600)
    """How long a request with an ``Idempotency-Key`` runs on without a client."""
    gateway_files: str | None = None
    """Directory, or URL of an object store that fsspec knows (``s3://bucket/folder``), of files and
    batches; shared by all gateways."""
    gateway_copies: Path | None = None
    """Directory on a disk of this machine for copies of the inputs of batches that the gateway
    drives from an object store; unset, that of temporary files (``TMPDIR``)."""
    gateway_proxies: str = ""
    """Networks of proxies whose ``X-Forwarded-For`` and ``-Proto`` count, separated by commas."""
    gateway_tls_cert: Path | None = None
    """PEM file of the certificate that the gateway shows; unset, it speaks plain HTTP."""
    gateway_tls_key: Path | None = None
    """PEM file of its private key; unset, the certificate's file holds it."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["pretty", "json"] = "pretty"
    """Lines for people, or one JSON object a line; both name the trace of a request."""
    jaeger_url: str = Field(default="http://127.0.0.1:16686", pattern=r"^https?://")
    """Page of the Jaeger that `shunter trace` reads from."""

    @field_validator("gateway_proxies")
    @classmethod
    def _of_networks(cls, networks: str) -> str:
        networks_of(networks)
        return networks

    @field_validator("archive_days")
    @classmethod
    def _as_long_as_is_to_be_kept(cls, days: int | None, info: ValidationInfo) -> int | None:
        retention = info.data.get("retention", "standard")
        if days is not None and retention != "standard" and days < RETENTION_DAYS[retention]:
            raise ValueError(
                f"SHUNTER_RETENTION={retention} keeps evidence longer: set"
                f" {RETENTION_DAYS[retention]} days at least, or none"
            )
        return days

    def kafka_options(self) -> dict[str, Any]:
        """Return the connection options that every aiokafka client takes.

        Raises:
            ValueError: SASL without user name and password, or a key that others may read.
            OSError: a TLS file can't be read.
        """
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.security_protocol,
        }
        if self.security_protocol.startswith("SASL"):
            if self.sasl_username is None or self.sasl_password is None:
                raise ValueError(
                    f"SHUNTER_SECURITY_PROTOCOL={self.security_protocol} needs"
                    " SHUNTER_SASL_USERNAME and SHUNTER_SASL_PASSWORD"
                )
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password.get_secret_value(),
            }
        if self.security_protocol.endswith("SSL"):
            context = ssl.create_default_context(cafile=self.ssl_cafile)
            if self.ssl_certfile is not None:
                # Without a file of its own the key stands beside the certificate.
                check_key_file(self.ssl_keyfile or self.ssl_certfile)
                context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile)
            options["ssl_context"] = context
        return options
