"""Request streams: the transactor, router, batcher, and the process that hosts them.

Belongs here: the engine (log, stage, transactor, progress), the stages of the router process,
telemetry. Does not: why a request goes somewhere (``policies``), or the backends (``workers``).
"""
