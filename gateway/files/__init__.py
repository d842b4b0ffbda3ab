"""Files that clients upload and batches write: a directory that all gateways share."""
