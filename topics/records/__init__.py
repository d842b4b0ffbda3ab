"""Records: requests, results, all records between them, and how they are read."""
