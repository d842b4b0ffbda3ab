"""Quality: how two answers differ, and whether a variant answers as its reference does."""
