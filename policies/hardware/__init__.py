"""Hardware: a request's time on an accelerator, by roofline and by iteration."""
