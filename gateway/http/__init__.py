"""The HTTP side that all endpoints share: errors, keys, limits, the application."""
