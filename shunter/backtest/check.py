"""Hard constraints of a backtest, computed a second time from request, fleet and policy alone.

A check that asked the code under test (``policies.scoring.constraints``, ``policies.tagging``)
would repeat its mistakes.
"""

from collections.abc import Iterator, Sequence

from policies import Fleet, Policy, refused_by
from policies.backtest.route import Send
from policies.backtest.workload import URLS, Arrival
from policies.config.fleet import Pool
from policies.config.policy import DataClass
from policies.config.series import Series
from policies.hardware.roofline import MEMORY_UTILIZATION
from topics.records.request import Constraints


def is_broken(send: Send, arrival: Arrival, fleet: Fleet, policy: Policy) -> bool:
    """Return whether a request was sent to a forbidden place."""
    option = send.option
    pool = fleet.pools[option.pool]
    serve = {each.variant: each for each in pool.serves}.get(option.variant)
    if serve is None or send.path not in pool.lanes:
        return True
    model = fleet.models[serve.model]
    # Of several prompts each has to fit; how they differ a trace doesn't tell.
    operation, prompt = _operation(arrival), -(-arrival.input_tokens // arrival.prompts)
    if operation == "embeddings":
        prompt = min(prompt, model.context_tokens)
    tokens = prompt + _declared_tokens(arrival)
    weights = sum(fleet.models[s.model].weights_bytes(s.precision) for s in pool.serves)
    usable = fleet.devices[pool.device].memory_bytes * serve.tensor_parallel * MEMORY_UTILIZATION
    keeps = (
        (serve.model, serve.precision) == (arrival.model, option.precision),
        operation in model.operations,
        tokens <= model.context_tokens,
        weights + tokens * model.kv_bytes_per_token <= usable,
        _keeps_wishes(send, arrival, pool, policy),
        refused_by(policy.rules, send.profile, option) is None,
    )
    return not all(keeps)


def _declared_tokens(arrival: Arrival) -> int:
    """Return the reply that is known to come: of another, a server ends where the context does."""
    if arrival.request is None:
        return 0
    return arrival.request.hints.output_tokens or 0


def _operation(arrival: Arrival) -> str:
    chat = "/v1/chat/completions"
    url = URLS.get(arrival.task, chat) if arrival.request is None else arrival.request.url
    return "chat" if url == chat else url.removeprefix("/v1/")


def _keeps_wishes(send: Send, arrival: Arrival, pool: Pool, policy: Policy) -> bool:
    """Return whether the client's constraints and those of its data class are met."""
    wanted = Constraints() if arrival.request is None else arrival.request.constraints
    required = DataClass()
    if wanted.data_class is not None:
        required = policy.data_classes[wanted.data_class]
    precisions: Sequence[str] | None = wanted.precisions
    floor = 0.0
    if precisions is None:
        precisions = policy.classes[arrival.task].precisions
        floor = policy.classes[arrival.task].quality_min or 0.0
    elif "any" in precisions:
        precisions = None
    labels = [*wanted.labels.items(), *required.labels.items()]
    allowed: list[tuple[str, Sequence[str] | None]] = [
        (pool.region, wanted.regions),
        (pool.region, required.regions),
        (send.option.precision, precisions),
        (send.option.precision, required.precisions),
        (send.option.pool, wanted.pools),
    ]
    allowed += _bounds(send, arrival, pool, policy)
    return (
        all(among is None or each in among for each, among in allowed)
        and send.option.pool not in wanted.exclude_pools
        and all(pool.labels.get(name) == value for name, value in labels)
        and send.option.quality >= floor
        and not any(group.has(send.option) for group in policy.never)
        and _is_within_cost(send, wanted.max_cost_usd)
    )


def emits_too_much(send: Send, arrival: Arrival, fleet: Fleet, policy: Policy) -> bool:
    """Return whether a request was sent where it was expected to emit more than it may.

    Energy is the promised cost over the price of a device hour, at busy power: what a decision
    expects is reckoned back from what it promised, by the fleet's series alone. Of a batch's member
    that is not possible, since its promise is that of the batch's longest; nor where a series is
    not known ahead.
    """
    if send.path == "batch" or any(s.known_ahead_s is not None for s in fleet.series.values()):
        return False
    limits = [policy.classes[arrival.task].max_gco2]
    if arrival.request is not None:
        limits.append(arrival.request.constraints.max_gco2)
    wanted = [limit for limit in limits if limit is not None]
    if not wanted or send.promised is None:
        return False
    found = expected_gco2(send, fleet)
    return found is None or found > min(wanted) * (1 + 1e-6)


def expected_gco2(send: Send, fleet: Fleet) -> float | None:
    """Return the grams of CO2 that a promise comes to; None where the fleet doesn't tell."""
    pool, promised = fleet.pools[send.option.pool], send.promised
    device = fleet.devices[pool.device]
    intensity = _of_place(fleet, pool, "gco2_per_kwh")
    if promised is None or promised.ttft_s is None or device.busy_w is None or intensity is None:
        return None
    begin = send.profile.created_at + promised.ttft_s
    end = send.profile.created_at + promised.finish_s
    usd = _mean(fleet.series[pool.tariff], begin, end) if pool.tariff else pool.usd_per_hour
    usd = device.usd_per_hour if usd is None else usd
    power_usd = _of_place(fleet, pool, "usd_per_kwh")
    if power_usd is not None:
        usd += device.busy_w / 1000 * _mean(power_usd, begin, end)
    hours = promised.cost_usd / send.profile.price_factor / usd
    return hours * device.busy_w / 1000 * _mean(intensity, begin, end)


def _of_place(fleet: Fleet, pool: Pool, field: str) -> Series | float | None:
    site = fleet.sites.get(pool.site or "")
    region = fleet.regions.get(pool.region)
    for place in (site, region):
        value = getattr(place, field, None)
        if value is not None:
            return fleet.series[value] if isinstance(value, str) else float(value)
    return None


def _mean(value: Series | float, begin: float, end: float) -> float:
    """Return a mean over a span by summing it up in a thousand parts."""
    if not isinstance(value, Series):
        return value
    parts, curve = 1000, value.curve
    if curve.next_change(begin) >= end:
        return curve.at(begin)
    step = (end - begin) / parts
    return sum(curve.at(begin + (n + 0.5) * step) for n in range(parts)) / parts


def _bounds(
    send: Send, arrival: Arrival, pool: Pool, policy: Policy
) -> Iterator[tuple[str, Sequence[str] | None]]:
    """Yield what the policy keeps the request's tenant and class to."""
    tenant = arrival.tenant if arrival.request is None else arrival.request.tenant
    limits = policy.tenants.get(tenant, policy.default_tenant)
    for bound in (limits.bound, policy.classes[arrival.task].bound):
        yield pool.region, bound.regions
        yield send.option.precision, bound.precisions
        yield send.option.pool, bound.pools


def _is_within_cost(send: Send, limit_usd: float | None) -> bool:
    if limit_usd is None or send.promised is None:
        return True
    return send.promised.cost_usd <= limit_usd
