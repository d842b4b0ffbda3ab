"""The wire: JSON as bytes and back, its canonical form, and what is wrong with a record."""
