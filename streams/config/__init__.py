"""Configuration in force: declarations, their changes on the topics, and extensions."""
