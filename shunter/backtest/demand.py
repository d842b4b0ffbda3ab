"""The bound's view of a request, and the pools that can serve it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

from policies import Option, Options
from policies.backtest.fault_model import Reality, true_roofline
from policies.scoring.constraints import refusal
from topics import Profile


@dataclass(frozen=True, slots=True)
class Demand:
    """One request for the bound. ``steps`` are the decode steps after the first token."""

    profile: Profile
    input_tokens: int
    output_tokens: int
    floor: float = 0.0
    """Least quality of a variant that is good enough for it."""
    is_of_several: bool = False
    """Whether it is one of several answers, whose pace is that of all of them on average."""

    @classmethod
    def of(cls, profile: Profile, output_tokens: int, floor: float) -> Self:
        """Return the demand of a request with replies of so many tokens.

        Of several answers it is that of one: all of them take no less.
        """
        if profile.answers == 1:
            return cls(profile, profile.input_tokens, output_tokens, floor)
        tokens = max(1, profile.input_tokens // profile.prompts)
        alone = replace(profile, input_tokens=tokens, prompts=1, replies=1)
        return cls(alone, tokens, output_tokens // profile.answers, floor, is_of_several=True)

    @property
    def steps(self) -> int:
        """Output tokens after the first."""
        return max(0, self.output_tokens - 1)

    @property
    def pace_s(self) -> float | None:
        """The TPOT that holds for this answer by itself."""
        return None if self.is_of_several else self.profile.tpot_s


def true_options(options: Options, reality: Reality) -> Options:
    """Return the options with the devices as they really are."""
    by_pool = {
        pool: tuple(replace(option, roofline=true_roofline(option, reality)) for option in choices)
        for pool, choices in options.by_pool.items()
    }
    by_model: dict[str, tuple[Option, ...]] = {}
    for choices in by_pool.values():
        for option in choices:
            by_model[option.model] = (*by_model.get(option.model, ()), option)
    return replace(options, by_pool=by_pool, by_model=by_model)


def able(demand: Demand, options: Options) -> Iterator[Option]:
    """Yield the options that could serve the request within its SLO, alone on the device."""
    profile = replace(demand.profile, output_tokens=demand.output_tokens)
    for option in options.by_model.get(profile.model, ()):
        if refusal(profile, option, demand.floor) is not None:
            continue
        if "direct" not in option.lanes and not (profile.batchable and "batch" in option.lanes):
            continue
        roofline, prompt = option.roofline, demand.input_tokens
        if profile.ttft_s is not None and roofline.prefill_s(prompt) > profile.ttft_s:
            continue
        if (
            profile.tpot_s is not None
            and demand.steps
            and roofline.step_s(1, prompt + 1) > profile.tpot_s
        ):
            continue
        yield option


def latest_end_s(demand: Demand) -> float:
    """Return when a request that is served in time has ended at the latest."""
    profile = demand.profile
    if profile.ttft_s is None or demand.pace_s is None:
        return profile.deadline
    return min(profile.deadline, profile.created_at + profile.ttft_s + demand.steps * demand.pace_s)


def latest_first_token_s(demand: Demand) -> float:
    """Return when a request that is served in time has its first token at the latest."""
    profile = demand.profile
    if profile.ttft_s is None:
        return profile.deadline
    return min(profile.deadline, profile.created_at + profile.ttft_s)
