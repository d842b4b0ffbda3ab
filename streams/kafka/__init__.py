"""Kafka: the log on aiokafka, and all code that uses its private parts."""
