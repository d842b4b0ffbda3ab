"""Backends: what runs a request. ``base`` is their contract."""
