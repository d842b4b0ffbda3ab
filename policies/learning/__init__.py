"""Learning: output lengths, errors of estimates and speeds of devices, from executed work."""
