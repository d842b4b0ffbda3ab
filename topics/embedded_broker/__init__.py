"""The embedded broker: a real Apache Kafka of one node or several, for demo and tests."""
