"""Answers of one request: several replies to a prompt, or a reply to each of several prompts."""

from policies.config.options import Option
from policies.fleet_state.candidate_load import OptionState
from policies.hardware.chunks import PREFILL_CHUNK_TOKENS
from policies.hardware.roofline import Roofline
from topics import Profile
from topics.records.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Answers:
    """Counts and lengths of the answers of a request, which one replica gets all at once.

    Attributes:
        count: replies of all prompts.
        prompts: each of which is computed once, whatever replies it has.
        prompt_tokens: of each, their mean.
        tokens: of all prompts and replies. Replies to one prompt share its keys and values.
        reply_tokens: of one reply; of none, one.
    """

    count: int
    prompts: int
    prompt_tokens: int
    tokens: int
    reply_tokens: int

    @classmethod
    def of(cls, profile: Profile) -> "Answers":
        """Return those of a request."""
        each, reply = profile.prompt_tokens or 1, profile.output_tokens or 1
        return cls(profile.answers, profile.prompts, each, profile.tokens, reply)

    @property
    def tokens_each(self) -> float:
        """Tokens of KV memory for each reply."""
        return self.tokens / self.count

    def prefill_s(self, roofline: Roofline) -> float:
        """Return the seconds of the prompts: short ones share passes, as in the accelerator."""
        if self.prompts == 1:
            return roofline.prefill_s(self.prompt_tokens)
        in_one = self._in_one_pass
        full, rest = divmod(self.prompts, in_one)
        return full * self._pass_s(in_one, roofline) + (
            self._pass_s(rest, roofline) if rest else 0.0
        )

    def late_s(self, standing: OptionState, members: int, ahead: int, tpot_s: float) -> float:
        """Return how much later the last of them begins than the first.

        Args:
            standing: where they go.
            members: like requests that are sent together.
            ahead: what has no place there, with all answers of the members.
            tpot_s: time per token.
        """
        first_ahead = max(0, ahead - members * (self.count - 1))
        one_tokens = self.prompt_tokens + self.reply_tokens
        last_s = max(
            self.room_wait_s(standing.option, tpot_s),
            self._wait_s(standing, ahead, members * self.tokens, tpot_s),
        )
        first_s = self._wait_s(standing, first_ahead, members * one_tokens, tpot_s)
        later_s = 0.0
        if self.prompts > 1:
            together = min(self.prompts, self._in_one_pass)
            roofline = standing.roofline
            later_s = self.prefill_s(roofline) - self._pass_s(together, roofline)
        return max(0.0, last_s - first_s) + members * later_s / standing.pace

    def _wait_s(self, standing: OptionState, ahead: int, tokens: int, tpot_s: float) -> float:
        """Return the wait for room that work beside them makes, as estimates have it."""
        capacity_tokens = max(1, standing.option.kv_capacity_tokens) * standing.replicas
        missing = standing.kv_usage - 1.0 + tokens / capacity_tokens
        return max(0.0, ahead / standing.slots, missing) * self.reply_tokens * tpot_s

    @property
    def _in_one_pass(self) -> int:
        return max(1, PREFILL_CHUNK_TOKENS // self.prompt_tokens)

    def _pass_s(self, prompts: int, roofline: Roofline) -> float:
        tokens = prompts * self.prompt_tokens
        return roofline.iteration_s(tokens, 0, tokens * (0.5 * self.prompt_tokens), 0, prompts)

    def room_wait_s(self, option: Option, tpot_s: float) -> float:
        """Return the seconds for which the last of them wait for places or memory of the others."""
        return (self.rounds(option) - 1) * self.reply_tokens * tpot_s

    def rounds(self, option: Option, count: int | None = None) -> int:
        """Return in how many rounds they are written, by a replica's places and memory.

        They begin together, and so they end.

        Args:
            option: where they go.
            count: so many of them; None: all.
        """
        count = self.count if count is None else count
        of_places = -(-count // option.max_batch)
        of_memory = -(-self.tokens // max(1, option.kv_capacity_tokens))
        return max(of_places, min(of_memory, count), 1)
