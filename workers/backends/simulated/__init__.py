"""The simulated backend: the model of an accelerator in real time."""
