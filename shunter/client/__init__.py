"""The client: publishes requests, follows them to their ends, and prints answers."""
