"""Placement: the decision, its inputs, the placer, admission, retry, shadow."""
