"""The router: reads requests, tags and places each, and drops duplicates."""
