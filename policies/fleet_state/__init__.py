"""The state of the fleet: what heartbeats tell, and the load of each candidate by it."""
