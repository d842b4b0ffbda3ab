"""Topics read whole, for audits, archives and upkeep."""
