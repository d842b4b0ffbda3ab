"""The metrics of the quality watch."""

from streams.metrics.metric import Metric

DRIFTED = Metric(
    "shunter.quality.drifted",
    "gauge",
    "{variant}",
    "1 while a variant answers otherwise than its reference, else 0; absent before any comparison",
    ("pool", "model_variant", "reference"),
    told_by="router",
)
DIFFERENCE = Metric(
    "shunter.quality.difference",
    "gauge",
    "1",
    "Mean difference of a variant's answers from its reference's, of about the last hundred",
    ("pool", "model_variant", "reference"),
    told_by="router",
)
COMPARED = Metric(
    "shunter.quality.comparisons",
    "counter",
    "{comparison}",
    "Answers of a variant that were compared with its reference's, or could not be",
    ("pool", "model_variant", "reference", "outcome"),
    told_by="router",
)
WATCH_COST = Metric(
    "shunter.quality.cost.today",
    "gauge",
    "USD",
    "Cost of the second runs of a class since midnight UTC",
    ("task",),
    told_by="router",
)

WATCH_METRICS = (DRIFTED, DIFFERENCE, COMPARED, WATCH_COST)
