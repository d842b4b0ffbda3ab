"""The engine: the log, the stage, the transactor, and progress; exactly once, for every stream."""
