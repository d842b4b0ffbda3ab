"""Headers of proxies count where the proxy is declared, as far as trusted ones wrote them."""

from types import SimpleNamespace
from typing import Any

import pytest
from multidict import CIMultiDict
from pydantic import ValidationError

from gateway.http.proxies import Proxies
from topics import Settings

ONE, TWO, CLIENT, LIAR = "10.0.0.1", "10.0.0.2", "203.0.113.7", "198.51.100.9"


def origin(peer: str | None, *headers: tuple[str, str], trusted: str = "10.0.0.0/8") -> Any:
    request: Any = SimpleNamespace(remote=peer, secure=False, headers=CIMultiDict(headers))
    return Proxies(trusted).origin(request)


def sent(*addresses: str, proto: str | None = None) -> list[tuple[str, str]]:
    told = [("X-Forwarded-For", address) for address in addresses]
    return told if proto is None else [*told, ("X-Forwarded-Proto", proto)]


@pytest.mark.parametrize(
    ("peer", "headers", "found"),
    [
        (ONE, sent(CLIENT, proto="https"), (CLIENT, "https")),
        (ONE, sent(f"{CLIENT}, {TWO}", proto="https, http"), (CLIENT, "https")),
        (ONE, sent(f"{CLIENT}, {TWO}", proto="https"), (CLIENT, "https")),
        (ONE, sent(CLIENT, TWO), (CLIENT, "http")),
        # What the client has written itself stands before what the proxy saw.
        (ONE, sent(f"{LIAR}, {CLIENT}", proto="https, http"), (CLIENT, "http")),
        (ONE, sent(f"{LIAR}, {TWO}, {CLIENT}"), (CLIENT, "http")),
        (ONE, sent("nonsense"), (ONE, "http")),
        (ONE, sent(f"nonsense, {TWO}"), (TWO, "http")),
        (ONE, sent(f"{CLIENT}:4711", proto="ftp"), (CLIENT, "http")),
        (ONE, sent("[2001:db8::1]:4711"), ("2001:db8::1", "http")),
        (ONE, [], (ONE, "http")),
        (f"::ffff:{ONE}", sent(CLIENT), (CLIENT, "http")),
        # Of nobody who is trusted, nothing is.
        (LIAR, sent(CLIENT, proto="https"), (LIAR, "http")),
        (None, sent(CLIENT), None),
    ],
)
def test_the_client_is_the_last_that_no_trusted_proxy_is(
    peer: str | None, headers: list[tuple[str, str]], found: Any
) -> None:
    assert origin(peer, *headers) == found


def test_where_none_is_declared_no_header_is_read() -> None:
    assert origin(ONE, *sent(CLIENT, proto="https"), trusted="") is None


def test_a_network_that_is_none_is_named() -> None:
    assert Settings(gateway_proxies="10.0.0.0/8, ::1").gateway_proxies == "10.0.0.0/8, ::1"
    with pytest.raises(ValidationError, match=r"'10\.0\.0\.0/99' is no network"):
        Settings(gateway_proxies="::1,10.0.0.0/99")
