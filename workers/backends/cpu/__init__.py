"""The backend for embeddings and classification on the processor."""
