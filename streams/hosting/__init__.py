"""Hosting: services of a process, and its web server."""
