"""Batching: groups, windows, the order of their members, and the release of batches."""
