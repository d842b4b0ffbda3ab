"""Evidence: the records of each step, what is read of them, and the heads and salts beside them."""
