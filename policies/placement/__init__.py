"""Placement: the decision, what it is made on, the placer, admission, retry, shadow."""
