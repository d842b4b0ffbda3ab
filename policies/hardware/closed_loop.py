"""A closed loop: clients that each send their next request when their last one is answered."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from policies.hardware.accelerator import Accelerator, VariantLimits
from policies.hardware.iteration import Completion, Job, Refused
from policies.hardware.roofline import Roofline

_VARIANT = "alone"


class Means(NamedTuple):
    """Means over requests, in seconds; TPOT over those with two output tokens or more."""

    ttft_s: float
    tpot_s: float


def closed_loop(
    roofline: Roofline,
    latency_s: float,
    lengths: Sequence[tuple[int, int]],
    clients: int,
) -> Means:
    """Return what clients measure of a replica that serves nothing else.

    All begin at once, and there is a place for each of them; only memory makes one wait. The
    replica goes from one change of its batch to the next, so a request costs a few steps, however
    long its reply.

    Args:
        roofline: the variant.
        latency_s: what each first token takes beside the replica.
        lengths: input and output tokens of each request, in the order of sending.
        clients: how many clients there are.

    Raises:
        ValueError: no request, weights that leave no memory, or a request that never fits in it.
    """
    if not lengths:
        raise ValueError("there is no request to send")
    accelerator = Accelerator({_VARIANT: VariantLimits(roofline, clients)})
    unsent: Iterator[tuple[int, tuple[int, int]]] = iter(enumerate(lengths))
    sent_at: dict[str, float] = {}
    ttft_s = tpot_s = 0.0
    replies = 0

    def send(now: float) -> None:
        for number, (input_tokens, output_tokens) in unsent:
            name = str(number)
            sent_at[name] = now
            accelerator.submit(Job(name, _VARIANT, input_tokens, output_tokens), now)
            return

    for _ in range(clients):
        send(0.0)
    while (at := accelerator.next_event_at()) is not None:
        for event in accelerator.advance(at):
            if isinstance(event, Refused):
                raise ValueError(event.reason)  # noqa: TRY004 - of its need, not its type
            if not isinstance(event, Completion):
                continue
            ttft_s += event.first_token_at - sent_at.pop(event.id)
            output_tokens = lengths[int(event.id)][1]
            if output_tokens > 1:
                decode_s = event.finished_at - event.first_token_at
                tpot_s += decode_s / (output_tokens - 1)
                replies += 1
            send(event.finished_at)
    return Means(latency_s + ttft_s / len(lengths), tpot_s / replies if replies else 0.0)
