"""Checking the audit trail: keys, chains, stories, and the topic or archive they are read from.

Belongs here: what an auditor runs, offline where an archive is at hand. Nothing here signs.
"""

from shunter.audit.findings import Finding, Findings
from shunter.audit.keyring import Keyring
from shunter.audit.verifier import Verifier

__all__ = ["Finding", "Findings", "Keyring", "Verifier"]
