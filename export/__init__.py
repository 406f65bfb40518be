"""Checkpoint to artifact: the only package that knows torch."""

import os

# From 1.29 on onnxruntime sends telemetry unless this is set before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
