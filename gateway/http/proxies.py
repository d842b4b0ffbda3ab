"""Proxies before a gateway: their headers tell whose request it is, where they are trusted."""

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from aiohttp import web

from topics.settings import Networks, networks_of

ADDRESSES, SCHEMES = "X-Forwarded-For", "X-Forwarded-Proto"


class Origin(NamedTuple):
    """The address of a client, and the scheme by which it sent its request."""

    address: str
    scheme: str


class Proxies:
    """The networks of the proxies that are trusted; without any, no header is read."""

    def __init__(self, networks: str) -> None:
        """Trust the networks of this list, such as ``10.0.0.0/8, ::1``. Raises ValueError."""
        self._networks: Networks = networks_of(networks)

    def origin(self, request: web.BaseRequest) -> Origin | None:
        """Return the origin of a request; None where no proxy is declared.

        Each proxy adds the address that it was reached from. So the client is the last of them that
        is no trusted proxy; what stands before it may be of anybody's making.
        """
        if not self._networks or (peer := _address(request.remote or "")) is None:
            return None
        scheme = "https" if request.secure else "http"
        if not self._is_trusted(peer):
            return Origin(str(peer), scheme)
        client, passed = peer, 0
        for text in reversed(_values(request, ADDRESSES)):
            found = _address(text)
            if found is None:
                break
            client, passed = found, passed + 1
            if not self._is_trusted(found):
                break
        schemes = [each.lower() for each in _values(request, SCHEMES)]
        # Some proxies pass one value on, others add theirs.
        told = schemes[max(0, len(schemes) - max(1, passed))] if schemes else scheme
        return Origin(str(client), told if told in ("http", "https") else scheme)

    def _is_trusted(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks)


def _values(request: web.BaseRequest, name: str) -> list[str]:
    """Return the values of a list header, which may come more than once."""
    texts = ",".join(request.headers.getall(name, ())).split(",")
    return [text.strip() for text in texts if text.strip()]


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Return an address, without the port that some proxies add; None for what is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ip_address(text)
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)
    return found if mapped is None else mapped
