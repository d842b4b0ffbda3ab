"""Cancellations: the set of cancelled requests, and their evidence."""
