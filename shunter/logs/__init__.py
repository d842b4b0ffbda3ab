"""Complete reads of topics, for audits, archives and upkeep."""
