"""Kafka: the log on aiokafka, and all that touches its private parts."""
