"""Backends run requests. ``base`` is their contract."""
