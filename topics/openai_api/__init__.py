"""Ends in the words of OpenAI's API: HTTP status and error of a result, lines of Batch output."""
