"""Autoscaling: the number of workers that a pool needs, and lanes without a reader."""
