"""Resilience: other tries, and circuit breakers."""
