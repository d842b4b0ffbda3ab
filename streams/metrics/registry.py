"""The registry of all metrics: instruments, documents and dashboard checks derive from it."""

from streams.metrics import bounds as b
from streams.metrics.metric import Metric
from streams.metrics.quality import WATCH_METRICS

# Upper bounds of the label `chance` of what was promised.
CHANCES = (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)
_TOPIC = ("messaging_destination_name",)
# The GenAI conventions' attributes: two that they require, and the model where it is known.
_GEN_AI = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
_CONSUMER = ("messaging_consumer_group_name", "messaging_destination_name")

STEPS = Metric(
    "shunter.steps", "counter", "{step}", "Steps of requests, as in the evidence", ("step", "task")
)
ENDED = Metric(
    "shunter.requests.ended",
    "counter",
    "{request}",
    "Requests that ended, by how",
    ("task", "tenant", "status"),
)
FAILURES = Metric(
    "shunter.failures",
    "counter",
    "{request}",
    "Requests that ended without an answer: refused, failed, expired or cancelled, and why",
    ("task", "status", "reason", "pool"),
)
RETRIED = Metric(
    "shunter.requests.retried", "counter", "{request}", "Requests of several attempts", ("task",)
)
FALLBACKS = Metric(
    "shunter.fallbacks",
    "counter",
    "{request}",
    "Attempts that failed at a pool and went to another",
    ("task", "pool", "reason"),
    told_by="worker",
)
DEAD_LETTERS = Metric(
    "shunter.dead_letters", "counter", "{record}", "Records that became dead letters", ("reason",)
)
PASSED_OVER = Metric(
    "shunter.records.passed_over", "counter", "{record}", "Unreadable followed records", _TOPIC
)
PLACEMENTS = Metric(
    "shunter.placements",
    "counter",
    "{request}",
    "Requests sent to a pool, at once or out of the hold",
    ("task", "pool", "model_variant", "path"),
    told_by="router",
)
REFUSED = Metric(
    "shunter.candidates.refused",
    "counter",
    "{candidate}",
    "Candidates that a decision could not take, and why",
    ("pool", "reason"),
    told_by="router",
)
DECISION_COST = Metric(
    "shunter.decision.cost.usd",
    "counter",
    "{USD}",
    "Estimates at the first decision: of what was chosen, and of the cheapest premium GPU at once."
    " Of requests alone that a premium GPU could serve",
    ("task", "candidate"),
    told_by="router",
)
RELEASES = Metric(
    "shunter.releases",
    "counter",
    "{request}",
    "Requests that the hold let go, and why",
    ("task", "reason"),
    told_by="router",
)
HOLD_DURATION = Metric(
    "shunter.hold.duration",
    "histogram",
    "s",
    "Time in the hold, of what was released",
    ("task",),
    (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, *b.LONG_S),
    told_by="router",
)
BATCH_SIZE = Metric(
    "shunter.batch.size",
    "histogram",
    "{request}",
    "Members of a batch",
    ("pool", "model_variant"),
    tuple(float(2**n) for n in range(11)),
    told_by="router",
)
BATCH_FILL = Metric(
    "shunter.batch.fill_ratio",
    "histogram",
    "1",
    "Members of a batch by as many as could have gone",
    ("pool", "model_variant"),
    (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99),
    told_by="router",
)
TTFT = Metric(
    "gen_ai.server.time_to_first_token",
    "histogram",
    "s",
    "Time from a request's `created_at` to its first token",
    (*_GEN_AI, "task", "pool", "model_variant"),
    (*b.TTFT_S, *b.LONG_S),
    told_by="worker",
)
TPOT = Metric(
    "gen_ai.server.time_per_output_token",
    "histogram",
    "s",
    "Time per output token after the first",
    (*_GEN_AI, "task", "pool", "model_variant"),
    b.TPOT_S,
    told_by="worker",
)
DURATION = Metric(
    "gen_ai.server.request.duration",
    "histogram",
    "s",
    "Time from a request's `created_at` to its answer",
    (*_GEN_AI, "task", "pool", "model_variant"),
    (*b.DURATION_S, *b.LONG_S),
    told_by="worker",
)
EXECUTION = Metric(
    "shunter.execution.duration",
    "histogram",
    "s",
    "Time from the start of an execution to its end, without any wait before",
    ("pool", "model_variant"),
    (*b.DURATION_S, *b.LONG_S),
    told_by="worker",
)
TOKENS = Metric(
    "gen_ai.client.token.usage",
    "histogram",
    "{token}",
    "Tokens of a prompt (`input`) and of its answer (`output`)",
    ("gen_ai_token_type", *_GEN_AI, "task", "pool"),
    b.TOKENS,
    told_by="worker",
)
CACHED = Metric(
    "shunter.tokens.cached",
    "counter",
    "{token}",
    "Tokens of prompts that the model server had in its cache",
    ("task", "pool"),
    told_by="worker",
)
TOOL_CALLS = Metric(
    "shunter.tool_calls",
    "histogram",
    "{call}",
    "Calls of tools in an answer",
    ("task",),
    (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
    told_by="worker",
)
COST = Metric(
    "shunter.cost.usd",
    "counter",
    "{USD}",
    "Cost of answers: busy device time by its price",
    ("task", "pool", "tenant"),
    told_by="worker",
)
SLO_OUTCOMES = Metric(
    "shunter.slo.outcomes",
    "counter",
    "{request}",
    "SLOs kept and missed, one by one and `all` together. An accepted request without an answer"
    " has missed `deadline`, unless its client cancelled it",
    ("task", "dimension", "outcome"),
)
SLO_TARGET = Metric(
    "shunter.slo.target_ratio",
    "gauge",
    "1",
    "Share of requests that is to keep its SLO: the class's `objective`",
    ("task",),
    told_by="router",
)
PREDICTION = Metric(
    "shunter.prediction.ratio",
    "histogram",
    "1",
    "What was got by what was promised",
    ("pool", "dimension"),
    b.RATIOS,
    told_by="worker",
)
CALIBRATION = Metric(
    "shunter.prediction.outcomes",
    "counter",
    "{request}",
    "SLOs kept and missed, by the upper bound of the chance that was promised",
    ("pool", "chance", "outcome"),
    told_by="worker",
)
TRANSACTION = Metric(
    "messaging.process.duration",
    "histogram",
    "s",
    "Time of a transaction, from its first record to the end of its commit",
    _CONSUMER,
    b.TRANSACTION_S,
)
LAG = Metric(
    "shunter.lag",
    "gauge",
    "{record}",
    "Committed records that wait unread on this process's partitions",
    _CONSUMER,
)
BLOCKED = Metric(
    "shunter.partition.blocked",
    "gauge",
    "s",
    "Time for which a transaction that is open has kept this process's partitions unread",
    _TOPIC,
)
BROKEN = Metric(
    "shunter.partition.broken",
    "gauge",
    "{partition}",
    "This process's partitions of which nothing is taken until somebody recovers them",
    _CONSUMER,
)
HOLD_REQUESTS = Metric(
    "shunter.hold.requests", "gauge", "{request}", "Requests held", ("task",), told_by="router"
)
HOLD_LIMIT = Metric(
    "shunter.hold.limit",
    "gauge",
    "{request}",
    "Requests that a router holds at most; others stay unread",
    told_by="router",
)
HOLD_PAYLOADS = Metric(
    "shunter.hold.payloads",
    "gauge",
    "By",
    "Payloads of held requests in memory, with their headers",
    told_by="router",
)
HOLD_PAYLOADS_LIMIT = Metric(
    "shunter.hold.payloads_limit",
    "gauge",
    "By",
    "Payloads that a router keeps at most; others are read again when they go",
    told_by="router",
)
GROUP_REQUESTS = Metric(
    "shunter.hold.group.requests",
    "gauge",
    "{request}",
    "Requests held, of the largest batch groups by name and of the `other` together",
    ("group",),
    told_by="router",
)
GROUP_AGE = Metric(
    "shunter.hold.group.oldest_age",
    "gauge",
    "s",
    "Time that the first of a batch group has been held",
    ("group",),
    told_by="router",
)
REPLICAS_NEEDED = Metric(
    "shunter.pool.replicas_needed",
    "gauge",
    "{replica}",
    "Replicas that must run from now on for each deadline to be kept, as far as one router sees",
    ("pool",),
    told_by="router",
)
REPLICAS_BY_DUE = Metric(
    "shunter.pool.replicas_by_due",
    "gauge",
    "{replica}",
    "Replicas that what is due within so many seconds needs, sent to the pool or held",
    ("pool", "due_s", "part"),
    told_by="router",
)
WORKERS = Metric(
    "shunter.pool.workers", "gauge", "{worker}", "Live workers", ("pool",), told_by="router"
)
BACKLOG = Metric(
    "shunter.pool.backlog.device_seconds",
    "gauge",
    "s",
    "Device time of unfinished work by when it is due, sent to the pool or held",
    ("pool", "due_s", "part"),
    told_by="router",
)
HEARTBEATS_REFUSED = Metric(
    "shunter.heartbeats.refused", "counter", "{heartbeat}",
    "Heartbeats of workers that are not what the fleet declares of their pool, by what differs",
    ("pool", "reason"), told_by="router",
)  # fmt: skip
UNREAD = Metric(
    "shunter.pool.unread", "gauge", "{request}",
    "Requests that wait in the pool's lanes and that no worker has taken, about",
    ("pool",), told_by="router",
)  # fmt: skip
IN_FLIGHT = Metric(
    "shunter.worker.requests",
    "gauge",
    "{request}",
    "Requests that a worker has taken and that run or wait there",
    ("pool", "state"),
    told_by="worker",
)
IN_FLIGHT_LIMIT = Metric(
    "shunter.worker.limit",
    "gauge",
    "{request}",
    "Requests that a worker takes at most; others stay unread in its lanes",
    ("pool",),
    told_by="worker",
)
SLOTS = Metric(
    "shunter.worker.slots",
    "gauge",
    "{request}",
    "Requests that a worker can run at once",
    ("pool",),
    told_by="worker",
)
MIGRATIONS = Metric(
    "shunter.worker.migrations",
    "counter",
    "{reply}",
    "Replies that went on at another replica of a simulated pool whose replies migrate",
    ("pool",),
    told_by="worker",
)
CIRCUIT_CLOSED = Metric(
    "shunter.circuit.closed",
    "gauge",
    "{circuit}",
    "1 while a variant's circuit is closed, else 0: nothing is sent to it then",
    ("pool", "model_variant"),
    told_by="worker",
)
DROPPED_SPANS = Metric(
    "shunter.spans.dropped",
    "counter",
    "{span}",
    "Spans given up, since no exporter took them in time",
)
LEFT_OUT_TRACES = Metric(
    "shunter.traces.left_out",
    "counter",
    "{trace}",
    "Requests that went wrong, were not sampled, and were not traced late since too many were",
)
LOGGED_ROOTS = Metric(
    "shunter.evidence_log.size",
    "gauge",
    "{root}",
    "Signed roots in the public log, and those of them in a published checkpoint",
    ("state",),
    told_by="log",
)
LOG_LAG = Metric(
    "shunter.evidence_log.lag",
    "gauge",
    "s",
    "For how long the oldest signed root has waited for a checkpoint that is published with its"
    " quorum of cosignatures, or the log for a round that succeeds",
    told_by="log",
)
LOG_COSIGNED = Metric(
    "shunter.evidence_log.cosigned",
    "gauge",
    "1",
    "1 where a witness cosigned the last time that it was asked, else 0",
    ("witness",),
    told_by="log",
)

METRICS = (*(each for each in globals().values() if isinstance(each, Metric)), *WATCH_METRICS)
