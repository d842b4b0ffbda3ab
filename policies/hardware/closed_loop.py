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


class Served(NamedTuple):
    """A request of a closed loop and when it was sent, begun and finished, in seconds."""

    sent_at: float
    first_token_at: float
    finished_at: float
    output_tokens: int


def served(
    roofline: Roofline, lengths: Sequence[tuple[int, int]], clients: int
) -> Iterator[Served]:
    """Yield each request when a replica that serves nothing else has answered it.

    All clients begin at once, and there is a place for each of them; only memory makes one wait.
    The replica goes from one change of its batch to the next, so a request costs a few steps,
    however long its reply.

    Args:
        roofline: the variant.
        lengths: input and output tokens of each request, in the order of sending.
        clients: how many clients there are.

    Raises:
        ValueError: weights that leave no memory, or a request that never fits in it.
    """
    accelerator = Accelerator({_VARIANT: VariantLimits(roofline, clients)})
    unsent: Iterator[tuple[int, tuple[int, int]]] = iter(enumerate(lengths))
    sent_at: dict[str, float] = {}

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
            output_tokens = lengths[int(event.id)][1]
            times = sent_at.pop(event.id), event.first_token_at, event.finished_at
            yield Served(*times, output_tokens)
            send(event.finished_at)


def closed_loop(
    roofline: Roofline,
    latency_s: float,
    lengths: Sequence[tuple[int, int]],
    clients: int,
) -> Means:
    """Return what clients measure of a replica that serves nothing else, as `served` has it.

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
    ttft_s = tpot_s = 0.0
    replies = 0
    for each in served(roofline, lengths, clients):
        ttft_s += each.first_token_at - each.sent_at
        if each.output_tokens > 1:
            tpot_s += (each.finished_at - each.first_token_at) / (each.output_tokens - 1)
            replies += 1
    return Means(latency_s + ttft_s / len(lengths), tpot_s / replies if replies else 0.0)
