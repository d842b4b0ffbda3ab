"""Scoring: hard constraints, estimates and the ranking of candidates."""
