"""Gateway: an OpenAI-compatible HTTP server that publishes requests and answers from results.

It keeps no state of its own: requests, cancellations, idempotency keys and results are records of
Kafka, so any number of gateways run side by side and none is special.
"""
