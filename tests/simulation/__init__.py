"""Seeded simulation: the real stages on Kafka in memory, under faults, on a virtual clock."""
