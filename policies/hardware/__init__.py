"""Hardware: what a request takes on an accelerator, by roofline and by iteration."""
