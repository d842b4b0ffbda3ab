"""Requests out and results in: what the gateway's endpoints share of Kafka."""
