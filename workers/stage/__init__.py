"""The stage of a worker: takes the requests of a pool, runs them, and writes their results."""
