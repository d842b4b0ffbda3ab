"""Programs that Shunter is measured against: each a process that reads the same requests."""
