"""API keys: a file of digests, read again when it changes."""

import hashlib
import hmac
import ipaddress
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from gateway.http.errors import ApiError
from topics.records.key_proof import KEY_CHARACTERS_MAX, key_headers
from topics.records.request import Name
from topics.wire.codec import describe

_BEARER = re.compile(r"Bearer +(\S+) *", re.IGNORECASE)

logger = logging.getLogger(__name__)


class KeysError(ValueError):
    """The keys' file can't be used; the message says why and what to do."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DeclaredLimits(_Strict):
    """Limits of one key at one gateway."""

    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    usd_per_day: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    concurrency: Annotated[int, Field(ge=1)] | None = None

    @property
    def counts_use(self) -> bool:
        """True if what requests have used counts against a limit."""
        return self.tokens_per_minute is not None or self.usd_per_day is not None


class ApiKey(_Strict):
    """One key: its tenant, the SHA-256 of its text in hex, and its id in the policy."""

    tenant: Name
    id: Annotated[Name, StringConstraints(max_length=KEY_CHARACTERS_MAX)] | None = None
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")]
    limits: DeclaredLimits = Field(default_factory=DeclaredLimits)


class _File(_Strict):
    keys: list[ApiKey]


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller: a tenant, and the key that said so; None where no keys are declared."""

    tenant: str
    key: ApiKey | None = None

    @property
    def key_id(self) -> str | None:
        """The policy's name of the key; None where it has none there."""
        return None if self.key is None else self.key.id


class ApiKeys:
    """The keys in force.

    Raises:
        KeysError: the file can't be used, or there is none and the host isn't this machine alone.
    """

    def __init__(self, path: Path | None, host: str) -> None:
        self._path = path
        self._read_as: tuple[int, int, int] | None = None
        self._keys: list[tuple[bytes, ApiKey]] = []
        if path is not None:
            self._read_as = self._stamp(path)
            self._keys = _read(path)
        elif not is_loopback(host):
            raise KeysError(
                f"SHUNTER_GATEWAY_HOST={host} is open to others and SHUNTER_GATEWAY_KEYS is unset:"
                " name a file of keys, or listen on 127.0.0.1"
            )

    def caller(self, authorization: str | None) -> Caller:
        """Return who asks, by the header ``Authorization``.

        Raises:
            ApiError: no key, or an unknown one (401).
        """
        found = _BEARER.fullmatch(authorization or "")
        if found is None:
            raise ApiError(
                401,
                "invalid_api_key",
                "there is no API key: send `Authorization: Bearer KEY`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if self._path is None:
            return Caller("default")
        digest = hashlib.sha256(found[1].encode("utf-8", "surrogateescape")).digest()
        known: ApiKey | None = None
        # All are compared, so that the time tells nothing of which is close.
        for stored, key in self._keys:
            if hmac.compare_digest(stored, digest):
                known = key
        if known is None:
            raise ApiError(
                401,
                "invalid_api_key",
                "the API key is not one of this gateway's",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return Caller(known.tenant, known)

    def refresh(self) -> bool:
        """Read the file again if it has changed; keep the keys if it can't be used.

        Returns whether they have changed.
        """
        if self._path is None:
            return False
        try:
            stamp = self._stamp(self._path)
            if stamp == self._read_as:
                return False
            self._read_as = stamp
            self._keys = _read(self._path)
        except KeysError as error:
            logger.error("the keys stay as they were: %s", error)  # noqa: TRY400
            return False
        logger.info("%d API keys are in force", len(self._keys))
        return True

    @staticmethod
    def _stamp(path: Path) -> tuple[int, int, int]:
        try:
            found = path.stat()
        except OSError as error:
            raise KeysError(f"SHUNTER_GATEWAY_KEYS={path} can't be read: {error}") from error
        return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path) -> list[tuple[bytes, ApiKey]]:
    try:
        text = path.read_text(encoding="utf-8")
        parsed = _File.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        raise KeysError(
            f"{path}: {describe(error)}; it holds `keys: [{{tenant: acme, sha256: HEX}}]`"
        ) from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        # A ValueError is of text that is no UTF-8, or no date though it looks like one.
        raise KeysError(f"SHUNTER_GATEWAY_KEYS={path} can't be read: {error}") from error
    return [(bytes.fromhex(key.sha256), key) for key in parsed.keys]


class KeyProofs:
    """Proves to routers which key a request came with.

    Args:
        secret: what gateways and routers share; None proves nothing.
    """

    def __init__(self, secret: str | None) -> None:
        self._secret = None if secret is None else secret.encode()

    def proven(self, key_id: str | None) -> str | None:
        """Return the id of a key as routers have it: None for one that nothing proves."""
        return None if self._secret is None else key_id

    def headers(self, key_id: str | None, request_id: str, tenant: str) -> list[tuple[str, bytes]]:
        """Return the headers of one request that came with a key; none for a key without an id."""
        if self._secret is None or key_id is None:
            return []
        return list(key_headers(self._secret, key_id, request_id, tenant).items())


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
