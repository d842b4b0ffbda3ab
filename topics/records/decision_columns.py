"""The columns of the rows in which a decision stands, by the names of its members."""

PROFILE = (
    "created_at",
    "deadline",
    "input_tokens",
    "output_tokens",
    "ttft_s",
    "tpot_s",
    "latency_sensitive",
    "batchable",
    "target_chance",
    "longest_wait_s",
    "window_s",
    "ingest_partition",
    "operation",
    "tier",
    "routed_at",
    "output_tokens_high",
    "regions",
    "precisions",
    "pools",
    "exclude_pools",
    "data_class",
    "labels",
    "max_cost_usd",
    "fallbacks",
    "certain_tokens",
    "key",
    "bound_by",
    "any_quality",
    "quality",
    "price_factor",
    "quote",
    "max_gco2",
    "counts_energy",
    "prompts",
    "replies",
)
# Of the members of a profile, those that stand in the record itself.
PROFILE_COMMON = ("tenant", "task", "model", "attempt")
LOAD = (
    "workers",
    "running",
    "queued",
    "backlog_s",
    "round_s",
    "kv_usage",
    "failure_rate",
    "variants",
    "constants",
    "power_kw",
    "is_misfit",
    "gathered",
    "transport",
    "is_filled",
)
# What is not written at the end of a row.
NO_LOAD = (0, 0, 0, 0.0, 0.0, 0.0, None, None, None, None, False, None, None, False)
# Of one variant in a pool; three of them are what was learned of it.
VARIANT_LOAD = (
    "running",
    "speed",
    "is_failing",
    "ttft_error",
    "tpot_error",
    "reuse",
    "is_drifted",
)
# Of what a quote promised.
QUOTE = ("id", "nano_usd", "chance")
# Of what a second run is for.
QUALITY = (
    "task",
    "reference",
    "compare",
    "within",
    "window_s",
    "deadline_s",
    "reference_pool",
    "pool",
    "variant",
    "of",
    "asked",
    "probe",
)
CREDIT = ("pool", "variant", "tokens")
WAITING = (
    "id",
    "held_at",
    "created_at",
    "deadline",
    "window_s",
    "input_tokens",
    "output_tokens",
    "ttft_s",
    "tpot_s",
    "output_tokens_high",
    "certain_tokens",
    "prompts",
    "replies",
)
# What is not written at the end of a row.
NO_WISH = (None, None, None, None, 1, 1)
