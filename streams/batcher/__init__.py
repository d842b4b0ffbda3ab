"""The batcher: keeps what is held, and releases batches."""
