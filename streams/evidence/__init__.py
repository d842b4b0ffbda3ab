"""Evidence: the records of each step, and the heads and salts beside them."""
