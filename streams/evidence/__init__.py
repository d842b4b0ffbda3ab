"""Evidence: the records of each step, a fast reader of them, and the published heads and salts."""
