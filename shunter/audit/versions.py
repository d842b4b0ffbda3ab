"""Fleets and policies by the versions named in the evidence."""

from functools import cache, cached_property

from policies import Options, Policy, compile_options
from shunter.client.kafka import run
from shunter.console import UserError
from shunter.logs.policies import read_policy_log
from streams.config.declarations import load_fleet, load_policy, published_fleet, published_policy
from topics import PolicyLog, Settings


class Versions:
    """Finds versions: first in the files of the settings, then among those applied on the topic."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._policy = load_policy(settings.policy)
        self._options = compile_options(load_fleet(settings.fleet))
        self.find = cache(self._find)

    def _find(self, fleet: str | None, policy: str | None) -> tuple[Options, Policy]:
        """Return the options of a fleet, and a policy.

        Raises:
            UserError: one of them is neither in a file nor on the topic.
        """
        return self._find_options(fleet), self._find_policy(policy)

    def _find_options(self, version: str | None) -> Options:
        if version is None or version == self._options.version:
            return self._options
        if self._said.find("fleet", version) is None:
            raise _unknown("fleet", version, self._options.version)
        return compile_options(published_fleet(self._said, version))

    def _find_policy(self, version: str | None) -> Policy:
        if version is None or version == self._policy.version:
            return self._policy
        if self._said.find("policy", version) is None:
            raise _unknown("policy", version, self._policy.version)
        return published_policy(self._said, version)

    @cached_property
    def _said(self) -> PolicyLog:
        try:
            return run(read_policy_log(self._settings))
        except UserError as error:
            raise UserError(
                "a decision was made with another fleet or policy than those of the files, and what"
                f" was applied can't be read: {error}"
            ) from error


def _unknown(what: str, wanted: str, given: str) -> UserError:
    return UserError(
        f"a decision was made with {what} {wanted}, the file is {given}, and no other of it was"
        f" applied; name the file of that time with --{what}"
    )
