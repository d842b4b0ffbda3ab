"""Records: what a request, a result, and all between them say, and how they are read."""
