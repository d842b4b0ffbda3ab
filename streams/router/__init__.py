"""The router: reads requests, tags and places each, and knows those that it has seen."""
