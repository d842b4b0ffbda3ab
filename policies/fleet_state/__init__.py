"""The state of the fleet from heartbeats, and the load of each candidate."""
