"""Batching: groups, windows, the order of their members, and when a batch is released."""
