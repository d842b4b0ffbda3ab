"""Sessions: a conversation's last pool, and the tokens that may still be cached there."""

from dataclasses import dataclass

from policies.config.options import Option
from topics import Profile
from topics.bounded_dict import BoundedDict

# Sessions that one router remembers, the last seen of them: some 300 bytes each.
SESSIONS_MAX = 20_000
# After so long half of what was cached has given way to others, by guess.
HALF_LIFE_S = 300.0


@dataclass(slots=True)
class _Turn:
    pool: str
    variant: str
    tokens: int
    at: float


class Sessions:
    """The pool with each session's keys and values, as far as this router has placed it."""

    def __init__(self) -> None:
        self._turns: BoundedDict[tuple[str, str, str], _Turn] = BoundedDict(SESSIONS_MAX)

    def remember(self, profile: Profile, option: Option, now: float) -> None:
        """Record that a request went to an option; ignored without a session."""
        if profile.session is None:
            return
        key = _key(profile, profile.session)
        tokens = profile.input_tokens + profile.output_tokens
        self._turns.put(key, _Turn(option.pool, option.variant, tokens, now))

    def credit(self, profile: Profile, now: float) -> "Credit | None":
        """Return the prompt tokens that may be cached, and where; None if there are none."""
        if profile.session is None:
            return None
        turn = self._turns.get(_key(profile, profile.session))
        if turn is None:
            return None
        left = 0.5 ** (max(0.0, now - turn.at) / HALF_LIFE_S)
        tokens = round(min(turn.tokens, profile.input_tokens) * left)
        return Credit(turn.pool, turn.variant, tokens) if tokens else None


@dataclass(frozen=True, slots=True)
class Credit:
    """Prompt tokens cached at a pool and variant, if it keeps its computed tokens."""

    pool: str
    variant: str
    tokens: int


def _key(profile: Profile, session: str) -> tuple[str, str, str]:
    # Two tenants may use one name, and must gain nothing by it.
    return (profile.tenant, profile.model, session)
