"""The simulated backend: an accelerator by its model, in real time."""
