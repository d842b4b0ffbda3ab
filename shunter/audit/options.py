"""Options of an audit: keys, heads and terms that the auditor brings along."""

from dataclasses import dataclass

from shunter.audit.chains import Witnessed
from shunter.audit.keyring import Keyring


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """Keys, heads and terms to verify by.

    ``retention_days`` is how long the trail is declared to be kept; None for the usual. Of an
    archive ``fresh_max`` records may lack their roots.
    """

    keyring: Keyring
    witnessed: Witnessed
    retention_days: float | None = None
    accept_beginnings: bool = False
    with_results: bool = True
    fresh_max: int = 0
