"""Spans to a collector by HTTP, as the ``OTEL_EXPORTER_OTLP_*`` variables say.

The library's exporter takes the SDK's spans alone, and encodes them itself.
"""

import gzip
import os
import zlib
from collections.abc import Callable

import requests
from opentelemetry.util.re import parse_env_headers
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

ENDPOINT = "http://localhost:4318"
PATH = "/v1/traces"
TIMEOUT_S = 10.0

# The protocol names these as retryable.
_BUSY = (429, 502, 503, 504)
_COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
}


class HttpExporter:
    """Posts spans over one persistent connection.

    Raises:
        ValueError: a variable is unfit.
    """

    def __init__(self) -> None:
        own = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        base = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or ENDPOINT
        self._url = own or base.rstrip("/") + PATH
        self._timeout_s = float(_told("TIMEOUT") or TIMEOUT_S)
        compression = _told("COMPRESSION").lower()
        if compression not in {"", "none", *_COMPRESS}:
            raise ValueError(f"OTEL_EXPORTER_OTLP_COMPRESSION={compression}: set gzip, or none")
        self._compress = _COMPRESS.get(compression)
        self._session = requests.Session()
        self._session.headers["Content-Type"] = "application/x-protobuf"
        self._session.headers.update(parse_env_headers(_told("HEADERS"), liberal=True))
        if self._compress is not None:
            self._session.headers["Content-Encoding"] = compression
        self._session.verify = _told("CERTIFICATE") or True
        certificate, key = _told("CLIENT_CERTIFICATE"), _told("CLIENT_KEY")
        if certificate:
            self._session.cert = (certificate, key) if key else certificate
        # This includes a connection that the collector has closed meanwhile.
        tries = Retry(
            2, allowed_methods=None, status_forcelist=_BUSY, backoff_factor=0.5,
            respect_retry_after_header=False, raise_on_status=False,
        )  # fmt: skip
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=tries))

    def send(self, request: bytes, spans: int) -> bool:
        """Send spans, and return whether the collector took them. Raises if there is none."""
        body = request if self._compress is None else self._compress(request)
        return self._session.post(self._url, body, timeout=self._timeout_s).ok

    def close(self) -> None:
        """Close the connection."""
        self._session.close()


def _told(name: str) -> str:
    """Return a variable for traces, else the one for all telemetry."""
    own, general = f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}"
    return (os.environ.get(own) or os.environ.get(general) or "").strip()
