"""Predictions of measured configurations, and the catalogue of devices and models they rest on."""
