"""Processes: the composition of a router and of a worker."""
