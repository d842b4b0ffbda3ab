"""Processes: what a router and a worker are composed of."""
