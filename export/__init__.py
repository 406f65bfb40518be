"""Checkpoint to artifact: the only package that knows torch."""
