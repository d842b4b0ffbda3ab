"""What Shunter is measured against: each a process of its own, which reads what it reads."""
