"""Cancellations: which requests are cancelled, and their evidence."""
