"""What runs requests: the worker's runtime, the backends, and the heartbeats.

Belongs here: the contract of a backend and its implementations, and how a request of a pool is
taken, run and ended. Does not: where it should have gone (``policies``), or how its effects are
made to last (``streams``).
"""
