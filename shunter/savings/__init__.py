"""Savings by placement: the bill of a span of time beside what other policies would have paid."""
