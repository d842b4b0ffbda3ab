"""Warnings of `shunter policy check`: fleets and policies that are valid but can't work."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from policies.config.bounds import NOT_BOUND, Bound, Rule
from policies.config.classes import WorkloadClass
from policies.config.fleet import Fleet
from policies.config.hardware import BYTES_PER_WEIGHT
from policies.config.options import Option, Options
from policies.config.policy import DataClass, Policy
from policies.config.quotes import ANY_CLASS
from policies.config.schema import did_you_mean
from policies.hardware.roofline import MEMORY_UTILIZATION

# Prompt of the request that a class is tried with: short, so that a warning is a certain one.
PROMPT_TOKENS = 256
# Of many with one and the same fault, so many are named.
TOLD_MAX = 5


def review(fleet: Fleet, options: Options, policy: Policy) -> list[str]:
    """Return one sentence for each setting that is valid but can't work."""
    used = _used(options, policy)
    return [
        *_unserved_models(fleet, options),
        *_unused_models(options, used),
        *_empty_groups(options, policy),
        *_hopeless_classes(used, policy),
        *_homeless_data(used, policy),
        *_unknown_places(fleet, policy),
        *_homeless_bounds(used, policy),
        *_lone_pools(used),
        *_dark_pools(used),
        *_missing_references(used, policy),
        *_unused_errors(policy),
    ]


def _used(options: Options, policy: Policy) -> Options:
    """Return the options without those that the policy never uses."""
    by_model, by_pool = (
        {
            name: kept
            for name, each in by.items()
            if (kept := tuple(option for option in each if not policy.is_never(option)))
        }
        for by in (options.by_model, options.by_pool)
    )
    return replace(options, by_model=by_model, by_pool=by_pool)


def _unserved_models(fleet: Fleet, options: Options) -> Iterator[str]:
    for name, model in fleet.models.items():
        if name in options.by_model:
            continue
        fits = [
            pool_name
            for pool_name, pool in fleet.pools.items()
            for precision in BYTES_PER_WEIGHT
            if fleet.devices[pool.device].computes_in(precision)
            and model.weights_bytes(precision)
            <= MEMORY_UTILIZATION * fleet.devices[pool.device].memory_bytes * pool.count
        ]
        where = "and no pool could hold its weights" if not fits else f"though {fits[0]} could"
        yield f"model {name}: no pool serves it, {where}; each request for it is rejected"


def _unused_models(options: Options, used: Options) -> Iterator[str]:
    for name, choices in options.by_model.items():
        if name not in used.by_model:
            pools = ", ".join(sorted({option.pool for option in choices}))
            yield (
                f"model {name}: the policy never uses the pools that serve it ({pools}); each"
                " request for it is rejected"
            )


def _empty_groups(options: Options, policy: Policy) -> Iterator[str]:
    every = [option for pool in options.by_pool.values() for option in pool]
    for part, groups in (("order", policy.order), ("never", policy.never)):
        for group in groups:
            if not any(map(group.has, every)):
                yield f"{part}: no pool of the fleet belongs to the group {group.name}"


def _hopeless_classes(options: Options, policy: Policy) -> Iterator[str]:
    for name, workload in policy.classes.items():
        for model, choices in options.by_model.items():
            replies = workload.output_tokens > 0
            if replies != ("embeddings" not in choices[0].operations):
                continue
            if not any(_allows(workload, option) for option in choices):
                wanted = ", ".join(workload.precisions or ())
                least = "" if workload.quality_min is None else f" of {workload.quality_min:g}"
                yield (
                    f"class {name}: no pool serves {model} to it: none has a lane for it at a"
                    f" precision it tolerates ({wanted or 'any'})"
                    f"{least and f' and a quality{least}'}"
                )
            elif not any(_allows(workload, o) and _keeps_slo(workload, o) for o in choices):
                yield (
                    f"class {name}: no pool serves {model} within its TTFT"
                    f" ({workload.ttft_ms or '-'} ms) and TPOT ({workload.tpot_ms or '-'} ms),"
                    f" even idle and for a prompt of {PROMPT_TOKENS} tokens"
                )
            elif not any(_allows(workload, o) and _ends_in_time(workload, o) for o in choices):
                yield (
                    f"class {name}: no pool serves {model} before its deadline"
                    f" ({workload.deadline_s:g} s), even idle and for a prompt of {PROMPT_TOKENS}"
                    f" tokens and a reply of {workload.output_tokens}; each such request expires"
                )


def _missing_references(options: Options, policy: Policy) -> Iterator[str]:
    served = {(each.pool, each.variant) for pool in options.by_pool.values() for each in pool}
    for name, workload in policy.classes.items():
        watch = workload.watch
        if watch is None or any(
            variant == watch.reference and watch.reference_pool in (None, pool)
            for pool, variant in served
        ):
            continue
        where = watch.reference_pool or "any pool"
        yield f"class {name}: its watch has the reference {watch.reference}, not served by {where}"


def _unused_errors(policy: Policy) -> Iterator[str]:
    known = (*policy.classes, ANY_CLASS)
    for name in policy.quotes.errors:
        if name not in known:
            yield f"quotes.errors: no class is called {name}; {did_you_mean(name, known)}"


def _allows(workload: WorkloadClass, option: Option) -> bool:
    if workload.precisions is not None and option.precision not in workload.precisions:
        return False
    if workload.quality_min is not None and option.quality < workload.quality_min:
        return False
    return "direct" in option.lanes or (workload.batchable and "batch" in option.lanes)


def _keeps_slo(workload: WorkloadClass, option: Option) -> bool:
    if not workload.latency_sensitive:
        return True
    roofline, pace = option.roofline, option.time_scale
    ttft_ms = 1000 * roofline.prefill_s(PROMPT_TOKENS) / pace
    tpot_ms = 1000 * roofline.step_s(1, PROMPT_TOKENS) / pace
    if workload.ttft_ms is not None and ttft_ms > workload.ttft_ms:
        return False
    return workload.tpot_ms is None or workload.output_tokens < 2 or tpot_ms <= workload.tpot_ms


def _ends_in_time(workload: WorkloadClass, option: Option) -> bool:
    roofline, steps = option.roofline, max(0, workload.output_tokens - 1)
    context_tokens = PROMPT_TOKENS + workload.output_tokens // 2
    model_s = roofline.prefill_s(PROMPT_TOKENS) + steps * roofline.step_s(1, context_tokens)
    return model_s / option.time_scale <= workload.deadline_s


def _homeless_data(options: Options, policy: Policy) -> Iterator[str]:
    present = _regions(options)
    for name, data in policy.data_classes.items():
        if data.regions is not None and not present.intersection(data.regions):
            regions = ", ".join(data.regions) or "none"
            yield (
                f"data class {name}: the regions that it may stay in have no pool ({regions});"
                " each request of it is rejected"
            )
            continue
        for model, choices in options.by_model.items():
            if not any(_may_hold(data, option) for option in choices):
                yield (
                    f"data class {name}: no pool serves {model} where it may stay"
                    f" ({_limits(data)}); each such request is rejected"
                )


def _unknown_places(fleet: Fleet, policy: Policy) -> Iterator[str]:
    regions = {pool.region for pool in fleet.pools.values()}
    for path, bound in policy.bounds():
        for what, named, known in (
            ("pools", bound.pools, fleet.pools.keys()),
            ("regions", bound.regions, regions),
        ):
            if unknown := [name for name in named or () if name not in known]:
                place, names = ".".join(path), ", ".join(unknown)
                yield f"{place}: its bound names {what} that the fleet has not: {names}"


def _homeless_bounds(options: Options, policy: Policy) -> Iterator[str]:
    every = [option for pool in options.by_pool.values() for option in pool]

    def is_homeless(*bounds: Bound) -> bool:
        return not any(all(_is_within(b, option, policy) for b in bounds) for option in every)

    alone = {".".join(path) for path, bound in policy.bounds() if is_homeless(bound)}
    for place in sorted(alone if every else ()):
        yield f"{place}: no pool is within its bound; each such request is rejected"
    together: dict[str, list[str]] = defaultdict(list)
    for (first, one), (second, other) in _bound_together(policy):
        if alone.isdisjoint((first, second)) and is_homeless(one, other):
            together[second].append(first)
    for second, firsts in together.items():
        more = len(firsts) - TOLD_MAX
        names = ", ".join(firsts[:TOLD_MAX]) + (f" and {more} others" if more > 0 else "")
        yield (
            f"{second}: no pool is within its bound and that of {names}; each such request is"
            " rejected"
        )


def _bound_together(policy: Policy) -> list[tuple[Rule, Rule]]:
    """Return the bounds of a key, its tenant and a class two by two, of those that bind."""
    tenants = {"default_tenant": policy.default_tenant.bound} | {
        f"tenants.{name}": limits.bound for name, limits in policy.tenants.items()
    }
    keys = {f"keys.{name}": key.bound for name, key in policy.keys.items()}
    classes = {f"classes.{name}": workload.bound for name, workload in policy.classes.items()}
    owned = [
        ((f"keys.{name}", key.bound), (f"tenants.{key.tenant}", policy.tenants[key.tenant].bound))
        for name, key in policy.keys.items()
        if key.tenant in policy.tenants
    ]
    bound_classes = [rule for rule in classes.items() if rule[1] != NOT_BOUND]
    crossed = product((tenants | keys).items(), bound_classes)
    return [pair for pair in (*owned, *crossed) if NOT_BOUND not in (pair[0][1], pair[1][1])]


def _is_within(bound: Bound, option: Option, policy: Policy) -> bool:
    limits = (
        (bound.regions, option.region),
        (bound.precisions, option.precision),
        (bound.pools, option.pool),
    )
    if any(allowed is not None and has not in allowed for allowed, has in limits):
        return False
    return bound.data_classes is None or any(
        _may_hold(policy.data_classes[name], option) for name in bound.data_classes
    )


def _may_hold(data: DataClass, option: Option) -> bool:
    if data.regions is not None and option.region not in data.regions:
        return False
    if data.precisions is not None and option.precision not in data.precisions:
        return False
    return all(option.labels.get(name) == value for name, value in data.labels.items())


def _limits(data: DataClass) -> str:
    limits = [*(data.regions or ()), *(data.precisions or ())]
    return ", ".join([*limits, *(f"{name}={value}" for name, value in data.labels.items())])


def _dark_pools(options: Options) -> Iterator[str]:
    firsts = {name: served[0] for name, served in options.by_pool.items() if served}
    for name, option in firsts.items():
        least_kw = _drawn_kw(option, busy=1)
        if option.pool_kw_max is not None and least_kw > option.pool_kw_max:
            yield _dark(name, least_kw, f"its power_kw_max is {option.pool_kw_max:g}")
        elif option.site_kw_max is not None:
            others = [o for o in firsts.values() if o.site == option.site and o.pool != name]
            least_kw += sum(_drawn_kw(other, busy=0) for other in others)
            if least_kw > option.site_kw_max:
                limit = f"the power_kw_max of its site {option.site} is {option.site_kw_max:g}"
                yield _dark(name, least_kw, limit)


def _drawn_kw(option: Option, busy: int) -> float:
    """Return what one worker of a pool draws with so many replicas busy, in kW."""
    idle_w, busy_w = option.idle_w or 0.0, option.busy_w or 0.0
    return (busy * busy_w + (option.replicas - busy) * idle_w) / 1000


def _dark(pool: str, least_kw: float, limit: str) -> str:
    return (
        f"pool {pool}: with a worker of each pool, and one replica here busy, {least_kw:g} kW"
        f" are drawn, and {limit}; nothing is sent there"
    )


def _regions(options: Options) -> set[str]:
    return {option.region for pool in options.by_pool.values() for option in pool}


def _lone_pools(options: Options) -> Iterator[str]:
    for region in sorted(_regions(options)):
        for model, choices in options.by_model.items():
            pools = sorted({option.pool for option in choices if option.region == region})
            if len(pools) == 1:
                yield (
                    f"region {region}: only {pools[0]} serves {model}; what must stay in the region"
                    " has no fallback"
                )
