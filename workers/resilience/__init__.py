"""Resilience: retries and circuit breakers."""
