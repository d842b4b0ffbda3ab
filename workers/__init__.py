"""Workers: run requests; their runtime, the backends, and the heartbeats.

This package holds the contract of a backend and its implementations, and how a request of a pool
is taken, run and ended. Placement is in ``policies``; effects are committed by ``streams``.
"""
