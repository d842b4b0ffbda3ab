"""Checking the audit trail: keys, chains, stories, and the topic or archive they are read from.

Belongs here: what an auditor runs, offline where an archive is at hand. Nothing here signs.
"""

from shunter.audit.findings import Findings, Problem
from shunter.audit.keyring import Keyring
from shunter.audit.verifier import Verifier

__all__ = ["Findings", "Keyring", "Problem", "Verifier"]
