"""Placement: a decision, what it was made from, another try, and a second policy's view."""
