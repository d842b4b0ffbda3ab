"""Batches: files of requests that run on Kafka, driven by whichever gateway holds the batch."""
