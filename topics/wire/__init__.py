"""The wire format: JSON encoding, its canonical form, and errors of records."""
