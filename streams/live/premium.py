"""The cost of a request on premium GPUs, from its evidence."""

from policies import Option, Options
from policies.scoring.premium import PREMIUM, Work, premium_usd
from streams.evidence.projection import RoutedStep, SeenTarget
from topics import Evidence, Profile


def able_premium(decision: Evidence | RoutedStep, options: Options) -> tuple[Option, ...]:
    """Return the premium GPUs that might have served a request: those that were not refused."""
    found = {
        (candidate.pool, candidate.model_variant): option
        for candidate in decision.candidates
        if candidate.cost_usd is not None
        and (option := _option(options, candidate.pool, candidate.model_variant)) is not None
        and option.kind == PREMIUM
    }
    return tuple(found.values())


def premium_usd_of(
    end: Evidence | RoutedStep,
    asked: Profile | SeenTarget,
    able: tuple[Option, ...],
    options: Options,
) -> float | None:
    """Return what a request that ran would have cost on premium GPUs, in US dollars.

    None where that can't be told: nothing ran, its place is not declared, or no premium GPU might
    have served it.

    Args:
        end: the step that ended the request.
        asked: what it was for, from the step that decided on it.
        able: from the step that decided on it.
        options: of the fleet.
    """
    if end.placement is None or end.got is None or end.usage is None:
        return None
    placed = _option(options, end.placement.pool, end.placement.model_variant)
    if placed is None:
        return None
    usage = end.usage
    tokens = usage.input_tokens, usage.output_tokens, usage.cached_tokens
    work = Work(*tokens, asked.prompts, asked.replies)
    run_s = end.got.finish_s - (end.got.finish_s if end.got.ttft_s is None else end.got.ttft_s)
    return premium_usd(work, placed, end.got.cost_usd, able, (end.at - run_s, end.at))


def _option(options: Options, pool: str, variant: str) -> Option | None:
    return next((o for o in options.by_pool.get(pool, ()) if o.variant == variant), None)
