"""The price of premium GPUs for work that ran: one method, for all that tell of money.

The demo, `shunter top` and the page of a router show this figure. It is a function of a request's
own evidence, so that who reads the same records computes the same sum, in any order.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from policies.config.options import Option
from policies.scoring.answers import Answers
from policies.scoring.hours import price_factor

PREMIUM = "premium_gpu"
# Halvings of the range of the number that shared a device; the cost is then exact to 1e-5.
HALVINGS = 20


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens of a request that ran, of all its prompts and replies.

    ``cached_tokens`` are those of its prompt already computed, ``replies`` are to each prompt.
    """

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    prompts: int = 1
    replies: int = 1

    @property
    def reply_tokens(self) -> int:
        """Tokens of one reply."""
        return -(-self.output_tokens // (self.prompts * self.replies))

    def device_s(self, option: Option, sharers: float) -> float:
        """Return the request's share of a replica's time, in seconds.

        Its prompts are computed alone; each decode step of a reply is shared by ``sharers``
        sequences like it.
        """
        roofline, count, each = option.roofline, self.prompts * self.replies, self.reply_tokens
        prompt_tokens = max(1, -(-self.input_tokens // self.prompts))
        if self.prompts == 1:
            seconds = roofline.prefill_s(prompt_tokens, self.cached_tokens)
        else:
            tokens = self.input_tokens + self.output_tokens
            answers = Answers(count, self.prompts, prompt_tokens, tokens, max(1, each))
            seconds = answers.prefill_s(roofline)
        if each > 1:
            context_tokens = sharers * (prompt_tokens + each // 2)
            step_s = roofline.step_s(sharers, context_tokens)
            seconds += count * (each - 1) * step_s / sharers
        return seconds

    def sharers(self, option: Option, device_s: float) -> float:
        """Return how many sequences like one of its own shared the device, from its measured share.

        At least 1, at most the variant's ``max_batch``: beyond those the model is off, or the
        device is faster or slower than declared.
        """
        low, high = 1.0, float(option.max_batch)
        if self.reply_tokens <= 1 or self.device_s(option, low) <= device_s:
            return low
        if self.device_s(option, high) >= device_s:
            return high
        for _ in range(HALVINGS):
            middle: float = (low * high) ** 0.5
            if self.device_s(option, middle) > device_s:
                low = middle
            else:
                high = middle
        return high


def premium_usd(
    work: Work,
    placed: Option,
    cost_usd: float,
    able: Iterable[Option],
    during: tuple[float, float] = (0.0, 0.0),
) -> float | None:
    """Return what the work would have cost on the cheapest of these premium GPUs, in US dollars.

    The device is exchanged and nothing else: the same tokens, shared by as many requests at a time
    as shared the device that it ran on (at most the premium variant's ``max_batch``). So waiting
    for a batch, which premium GPUs could do too, is no saving here, and what ran on a premium GPU
    is its own comparison. Where prices move, each is that of the same hour.

    Args:
        work: the tokens.
        placed: where it ran.
        cost_usd: what that cost, of measured device time.
        able: the premium GPUs that might have served it.
        during: from its first token to its finish, epoch seconds; of no account where no price
            moves.

    Returns:
        None if there is none.
    """
    if placed.kind == PREMIUM:
        return cost_usd
    usd_per_s = placed.usd_per_s * price_factor(placed, *during)
    sharers = work.sharers(placed, cost_usd / usd_per_s) if usd_per_s else 1.0
    costs = (
        price_factor(option, *during)
        * option.cost_usd(
            0.0 if option.rates else work.device_s(option, min(sharers, option.max_batch)),
            work.input_tokens,
            work.output_tokens,
            work.cached_tokens,
        )
        for option in able
    )
    return min(costs, default=None)
