"""What OpenAI's API says of an end: HTTP status and error of a result, lines of Batch output."""
