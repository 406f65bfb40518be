"""NVIDIA GPUs: which shapes run, in what, and the engine that runs them."""
