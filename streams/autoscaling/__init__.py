"""Autoscaling: how many workers a pool wants, and lanes that nobody reads."""
