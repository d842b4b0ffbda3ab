"""Tracing: spans made of committed evidence, sampled, queued and exported."""
