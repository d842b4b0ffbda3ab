"""Assemble `shunter ledger --follow`."""

import logging
from typing import NoReturn

from streams.hosting.services import FollowerService, run_app
from streams.logs import set_up_logging
from streams.usage_report import LiveLedger
from topics import Settings

logger = logging.getLogger(__name__)


def run_ledger(settings: Settings, window_s: float, *, by_tenant: bool = False) -> NoReturn:
    """Serve the live ledger at ``/ledger`` until SIGTERM or SIGINT; ``/readyz`` once it follows.

    Args:
        settings: of Kafka, and where to serve.
        window_s: the length of a window.
        by_tenant: rows are of one tenant each.
    """
    set_up_logging(settings.log_level, settings.log_format)
    ledger = LiveLedger(settings, window_s, by_tenant=by_tenant)
    where = f"http://{settings.web_host}:{settings.web_port}/ledger"
    logger.info("ledger of windows of %g s at %s", window_s, where)
    run_app(
        *("ledger", settings, [FollowerService(ledger)]),
        # Faust serves pages before its services have started.
        obstacle=lambda: None if ledger.follows else "the topics are not read to their ends yet",
        pages={"/ledger": ledger.page},
    )
