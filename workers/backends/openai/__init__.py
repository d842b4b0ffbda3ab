"""The backend for servers that speak the OpenAI API."""
