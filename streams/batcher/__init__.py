"""The batcher: keeps held requests, and releases batches."""
