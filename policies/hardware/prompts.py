"""The prompts on a replica that have no first token yet."""

from dataclasses import dataclass

from policies.hardware.chunks import PREFILL_CHUNK_TOKENS
from policies.hardware.roofline import Roofline


@dataclass(slots=True)
class WaitingPrompts:
    """The prompts of one variant that have no first token yet."""

    roofline: Roofline
    short: int = 0
    short_tokens: int = 0
    long_tokens: int = 0
    long_s: float = 0.0

    def add(self, tokens: int, sign: int = 1) -> None:
        """Count a prompt; with -1 as sign it no longer counts."""
        if tokens <= PREFILL_CHUNK_TOKENS:
            self.short += sign
            self.short_tokens += sign * tokens
        else:
            self.long_tokens += sign * tokens
            self.long_s += sign * self.roofline.prefill_s(tokens)

    def seconds(self) -> float:
        """Return their time: short prompts share chunks, long ones attend to themselves."""
        return (self.long_s if self.long_tokens else 0.0) + _chunked_s(
            self.roofline, self.short_tokens, self.short
        )

    def chunks(self) -> int:
        """Return their number of iterations."""
        return -(-(self.short_tokens + self.long_tokens) // PREFILL_CHUNK_TOKENS)


def _chunked_s(roofline: Roofline, tokens: int, prompts: int) -> float:
    full, rest = divmod(tokens, PREFILL_CHUNK_TOKENS)
    full_s = full * roofline.prefill_s(PREFILL_CHUNK_TOKENS) if full else 0.0
    # Each chunk has the overhead of one prompt.
    shared_s = max(0, prompts - full - (rest > 0)) * roofline.prompt_overhead_s
    return full_s + (roofline.prefill_s(rest) if rest else 0.0) + shared_s
