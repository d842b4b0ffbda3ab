"""The page of a router: the live view, and the story of a request. It is read-only."""

import asyncio
import ipaddress
import logging
import shlex
from collections.abc import Mapping
from importlib.resources import files
from urllib.parse import urlsplit

from aiokafka.errors import KafkaError

from policies import Options, Policy, Situation
from streams.engine.clock import Clock
from streams.engine.log import LogError
from streams.hosting.web import Answer, View, WebRequest
from streams.live.evidence_search import SEARCH_S_MAX, Search, find_evidence
from streams.live.on_demand_view import OnDemandView
from streams.live.story import tell
from streams.live.view import WINDOW_S, LiveView
from topics import Catalogue, Settings, encode

JSON = "application/json"
ID_CHARACTERS_MAX = 128
HEADERS = {
    # Scripts and styles are files of ours; nothing is loaded from elsewhere, or framed.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_FILES = {
    "/": ("text/html", "page.html"),
    "/live.css": ("text/css", "page.css"),
    "/live.js": ("text/javascript", "page.js"),
}

logger = logging.getLogger(__name__)


class LivePage:
    """Answers the page's requests. ``on_demand`` must run beside it."""

    def __init__(self, settings: Settings, options: Options, policy: Policy, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._search = asyncio.Lock()
        self._options, self._policy = options, policy
        catalogue = Catalogue(settings)

        def new_view() -> LiveView:
            return LiveView(
                catalogue,
                self._options,
                self._policy,
                since=clock.now() - WINDOW_S,
                held_records_max=settings.held_records_max,
            )

        self.on_demand = OnDemandView(settings, clock, new_view)

    def change(self, situation: Situation) -> None:
        """Use another policy and fleet from now on."""
        self._options, self._policy = situation.options, situation.policy
        self.on_demand.change(self._options, self._policy)

    def views(self) -> Mapping[str, View]:
        """Return the handlers by path; empty if the page is disabled."""
        is_shown = self._settings.web_page
        if not (is_loopback(self._settings.web_host) if is_shown is None else is_shown):
            return {}
        folder = files("streams.live") / "assets"
        texts = {
            path: (kind, (folder / name).read_bytes()) for path, (kind, name) in _FILES.items()
        }
        return {
            **{path: self._checked(_file(kind, text)) for path, (kind, text) in texts.items()},
            "/view.json": self._checked(self._view),
            "/story.json": self._checked(self._story),
        }

    def _checked(self, view: View) -> View:
        async def answer(asked: WebRequest) -> Answer:
            if not _is_for_us(asked, self._settings.web_host):
                return _told(
                    403, "this page answers on this machine, to itself: open it as localhost"
                )
            return await view(asked)

        return answer

    async def _view(self, _asked: WebRequest) -> Answer:
        return _json(200, self.on_demand.look())

    async def _story(self, asked: WebRequest) -> Answer:
        request_id = asked.query.get("id", "").strip()
        if not 0 < len(request_id) <= ID_CHARACTERS_MAX:
            return _told(400, f"the id of a request has 1 to {ID_CHARACTERS_MAX} characters")
        if self._search.locked():
            return _told(429, "another search is under way; try again in a few seconds")
        async with self._search:
            try:
                async with asyncio.timeout(2 * SEARCH_S_MAX):
                    found = await find_evidence(self._settings, self._clock, request_id)
            except (KafkaError, LogError, TimeoutError) as error:
                logger.warning("a search in the evidence failed: %r", error)
                return _told(503, "Kafka can't be read at present; the router's log has more")
        if not found.evidence:
            return _told(404, _not_found(request_id, found))
        return _json(200, {"story": tell(found.evidence), "is_whole": found.is_whole})


def _not_found(request_id: str, found: Search) -> str:
    if found.is_whole:
        return (
            f"nothing is known of request {request_id!r}: it has not been routed yet, its evidence"
            " is older than what is kept, or the id is another one"
        )
    return (
        f"nothing is known of request {request_id!r} among the newest {found.records:,} records"
        f" where its evidence would be; `shunter audit show {shlex.quote(request_id)}` looks"
        " through all of them"
    )


def _is_for_us(asked: WebRequest, web_host: str) -> bool:
    """Return whether a request is meant for this server, and not from another site's page.

    A site whose name was pointed here (DNS rebinding) could read our answers; it names itself in
    Host, and no address literal can be rebound.
    """
    if asked.headers.get("Sec-Fetch-Site", "none") == "cross-site":
        # A link that is followed is a navigation, and shows the page to its user alone.
        return asked.headers.get("Sec-Fetch-Mode") == "navigate"
    if not is_loopback(web_host):
        # An operator who opened it to others knows its names.
        return True
    try:
        name = urlsplit(f"//{asked.headers.get('Host', '')}").hostname or ""
    except ValueError:
        return False
    return is_loopback(name)


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, by an address that no other machine reaches."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _file(content_type: str, content: bytes) -> View:
    async def answer(_asked: WebRequest) -> Answer:
        return Answer(content_type, content, headers=HEADERS)

    return answer


def _json(status: int, found: object) -> Answer:
    return Answer(JSON, encode(found), status, HEADERS)


def _told(status: int, message: str) -> Answer:
    return _json(status, {"error": message})
