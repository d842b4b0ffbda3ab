"""Ground of the tests of the policies: a small fleet, a policy, requests, profiles."""

import json
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from policies import (
    Options,
    Policy,
    Situation,
    Tagged,
    compile_options,
    parse_fleet,
    parse_policy,
    situation,
    tag,
)
from policies.fleet_state.view import FleetView
from topics import (
    InferenceRequest,
    PoolStatus,
    Profile,
    ServerLoad,
    VariantStatus,
    parse_request,
)

NOW = 1_700_000_000.0
BYTES_MAX = 10_000_000

# New examples on each run; a failure prints the blob that replays it.
settings.register_profile(
    "policies",
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
PROPERTY = settings.get_profile("policies")

# `premium` and `silicon` serve at once and in batches, `board` is cheap, slow and for batches only,
# `small` is for embeddings. Two variants of one model stand in `premium`.
FLEET = """
devices:
  fast: {kind: premium_gpu, memory_gb: 80, memory_bandwidth_tb_s: 3, tflops: {bf16: 900, fp8: 1800},
         usd_per_hour: 4.0}
  chip: {kind: inference_silicon, memory_gb: 200, memory_bandwidth_tb_s: 6,
         tflops: {bf16: 1000, fp8: 5000, fp4: 10000}, usd_per_hour: 9.0}
  slow: {kind: lpddr_board, memory_gb: 160, memory_bandwidth_tb_s: 0.5,
         tflops: {int8: 300, bf16: 150}, usd_per_hour: 0.4}
  sock: {kind: cpu, memory_gb: 256, memory_bandwidth_tb_s: 0.4, tflops: {bf16: 20, fp32: 5},
         usd_per_hour: 0.1}
models:
  llama: {parameters_b: 8, layers: 32, kv_heads: 8, head_dim: 128, context_tokens: 32768}
  vector: {parameters_b: 0.1, layers: 6, kv_bytes_per_token: 0, context_tokens: 512,
           operations: [embeddings]}
pools:
  premium:
    device: fast
    count: 2
    region: eu-west
    labels: {cooling: liquid, operator: acme}
    serves:
      - {model: llama, variant: llama-bf16, precision: bf16, max_batch: 32}
      - {model: llama, variant: llama-fp8, precision: fp8, max_batch: 32}
  silicon:
    device: chip
    count: 1
    region: us-east
    labels: {cooling: liquid}
    serves:
      - {model: llama, variant: llama-fp8, precision: fp8, max_batch: 64}
      - {model: vector, variant: vector-bf16, precision: bf16, max_batch: 64}
  board:
    device: slow
    count: 2
    region: eu-west
    lanes: [batch]
    labels: {cooling: air}
    serves:
      - {model: llama, variant: llama-int8, precision: int8, max_batch: 64}
  small:
    device: sock
    count: 1
    region: us-east
    labels: {cooling: air}
    serves:
      - {model: vector, variant: vector-bf16, precision: bf16, max_batch: 64}
"""

# Two pools that differ in nothing but the name.
TWINS = """
devices:
  fast: {kind: premium_gpu, memory_gb: 80, memory_bandwidth_tb_s: 3, tflops: {bf16: 900},
         usd_per_hour: 4.0}
models:
  llama: {parameters_b: 8, layers: 32, kv_heads: 8, head_dim: 128, context_tokens: 32768}
pools:
  left:
    device: fast
    count: 1
    region: eu-west
    serves: [{model: llama, variant: llama-bf16, precision: bf16, max_batch: 16}]
  right:
    device: fast
    count: 1
    region: eu-west
    serves: [{model: llama, variant: llama-bf16, precision: bf16, max_batch: 16}]
"""

POLICY = """
classes:
  chat: {latency_sensitive: true, batchable: false, ttft_ms: 1000, tpot_ms: 100, deadline_s: 60,
         longest_wait_s: 20, output_tokens: 200}
  bulk: {latency_sensitive: false, batchable: true, deadline_s: 3600, window_s: 30,
         longest_wait_s: 600, output_tokens: 200}
  planning: {latency_sensitive: true, batchable: false, deadline_s: 120, longest_wait_s: 30,
             output_tokens: 60, precisions: [bf16, fp8]}
  embedding: {latency_sensitive: false, batchable: true, deadline_s: 600, window_s: 10,
              longest_wait_s: 300, output_tokens: 0}
tiers:
  priority: {latency_sensitive: true, batchable: false}
  flex: {latency_sensitive: false, batchable: true, slo: false, deadline_s: 1800, window_s: 20,
         longest_wait_s: 900}
data_classes:
  regulated: {regions: [eu-west], precisions: [bf16, fp8], labels: {operator: acme}}
  public: {}
windows: {members_max: 32, margin_s: 1.0, length_buckets_tokens: [512, 2048], prior_rate_per_s: 1.0}
"""


def a_policy(text: str = POLICY) -> Policy:
    return parse_policy(text, "policy.yaml")


def some_options(text: str = FLEET) -> Options:
    return compile_options(parse_fleet(text, "fleet.yaml"))


# What the fleets above declare of the pools, which no worker may differ from.
_DECLARED = {
    "premium": ("fast", "eu-west"),
    "silicon": ("chip", "us-east"),
    "board": ("slow", "eu-west"),
    "small": ("sock", "us-east"),
    "vendor": ("chip", "us-east"),
    "left": ("fast", "eu-west"),
    "right": ("fast", "eu-west"),
}


def status(pool: str, *, instance: str = "0", at: float = NOW, **changes: Any) -> PoolStatus:
    """A heartbeat of a worker that is up and has nothing to do."""
    declared = _DECLARED.get(pool, ("any", "any"))
    idle = PoolStatus(
        pool=pool,
        instance=instance,
        at=at,
        state="up",
        interval_s=5.0,
        device=declared[0],
        region=declared[1],
        slots=64,
        running=0,
        queued=0,
        backlog_s=0.0,
    )
    return replace(idle, **changes)


def a_situation(
    *live: str, fleet: str = FLEET, policy: str = POLICY, options: Options | None = None
) -> Situation:
    """The situation in which the named pools live, idle; without names all of them."""
    made = situation(options or some_options(fleet), a_policy(policy))
    for pool in live or tuple(made.options.by_pool):
        made.view.report(status(pool))
    return made


def nobody_lives(fleet: str = FLEET) -> Situation:
    return situation(some_options(fleet), a_policy())


def profile(**changes: Any) -> Profile:
    """A chat turn of 400 + 200 tokens, made now and to be finished in a minute."""
    chat = Profile(
        id="r1",
        tenant="default",
        task="chat",
        model="llama",
        operation="chat",
        tier="auto",
        created_at=NOW,
        deadline=NOW + 60,
        input_tokens=400,
        output_tokens=200,
        ttft_s=1.0,
        tpot_s=0.1,
        latency_sensitive=True,
        batchable=False,
        target_chance=0.9,
        longest_wait_s=20.0,
        window_s=0.0,
        ingest_partition=0,
        routed_at=NOW,
    )
    return replace(chat, **changes)


def bulk(**changes: Any) -> Profile:
    """The same as work that may wait half a minute for company and an hour for its end."""
    waits: dict[str, Any] = {
        "task": "bulk",
        "deadline": NOW + 3600,
        "ttft_s": None,
        "tpot_s": None,
        "latency_sensitive": False,
        "batchable": True,
        "longest_wait_s": 600.0,
        "window_s": 30.0,
    }
    return profile(**waits | changes)


def request(**fields: Any) -> InferenceRequest:
    """A request as it comes out of the parser."""
    value = {"id": "r1", "body": {"model": "llama"}} | fields
    return parse_request(json.dumps(value).encode(), bytes_max=BYTES_MAX)


def tagged(policy: Policy | None = None, **fields: Any) -> Tagged:
    """The tags of a request that was received a second ago."""
    return tag(
        request(**fields),
        policy or a_policy(),
        received_at=NOW - 1,
        now=NOW,
        ingest_partition=3,
    )


REGIONS = ("eu-west", "us-east", "mars")
PRECISIONS = ("bf16", "fp8", "int8", "fp4")
POOLS = ("premium", "silicon", "board", "small", "other")


def _some(names: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(names), unique=True, max_size=3).map(tuple)


def _rarely(strategy: st.SearchStrategy[Any], otherwise: Any) -> st.SearchStrategy[Any]:
    # Many constraints together leave nothing to choose from.
    return st.sampled_from([False, False, False, True]).flatmap(
        lambda constrained: strategy if constrained else st.just(otherwise)
    )


def profiles() -> st.SearchStrategy[Profile]:
    """Requests with any constraints, most of which something in the fleet satisfies."""

    def build(base: dict[str, Any], batchable: bool, **changes: Any) -> Profile:
        return (bulk if batchable else profile)(**base | changes)

    model = st.sampled_from(
        [{"model": "llama"}] * 8
        + [{"model": "vector", "operation": "embeddings"}] * 2
        + [{"model": "vector"}, {"model": "nobody"}]
    )
    return st.builds(
        build,
        model,
        st.booleans(),
        id=st.uuids().map(str),
        tenant=st.sampled_from(["a", "b"]),
        regions=_rarely(_some(REGIONS), None),
        precisions=_rarely(_some(PRECISIONS), None),
        pools=_rarely(_some(POOLS), None),
        exclude_pools=_rarely(_some(POOLS[:2]), ()),
        labels=_rarely(st.sampled_from([{"cooling": "air"}, {"operator": "acme"}]), {}),
        max_cost_usd=_rarely(st.floats(0, 0.002), None),
        input_tokens=st.integers(0, 500) | _rarely(st.integers(0, 40_000), 300),
        output_tokens=st.integers(0, 500) | _rarely(st.integers(0, 400_000), 200),
        deadline=st.floats(0.5, 4000).map(lambda s: NOW + s),
        prompts=_rarely(st.integers(1, 300), 1),
        replies=_rarely(st.integers(1, 200), 1),
    )


def views(options: Options) -> st.SearchStrategy[FleetView]:
    """Views of a fleet with any workers alive, under any load."""
    variant = st.builds(
        VariantStatus,
        running=st.integers(0, 200),
        queued=st.integers(0, 200),
        speed=st.floats(0.1, 10),
    )
    beat = st.builds(
        status,
        st.sampled_from([*options.by_pool, "stranger"]),
        instance=st.sampled_from("01"),
        state=st.sampled_from(["up", "up", "up", "draining", "down"]),
        backlog_s=st.floats(0, 100),
        transport_s=st.none() | st.floats(0.001, 0.5),
        transport_known=st.floats(0, 1),
        idle_replicas=st.none() | st.integers(0, 3),
        urgent=st.integers(0, 20),
        server=st.none() | st.builds(ServerLoad, kv_usage=st.floats(0, 3)),
        variants=st.dictionaries(
            st.sampled_from(["llama-bf16", "llama-fp8", "llama-int8", "vector-bf16"]), variant
        ),
    )

    def build(live: bool, beats: list[PoolStatus]) -> FleetView:
        view = FleetView(options)
        for each in [status(pool) for pool in options.by_pool if live] + beats:
            view.report(each)
        return view

    return st.builds(build, st.booleans(), st.lists(beat, max_size=6))
