"""Checkpoint to artifact: the only package that knows torch."""

import os

# From 1.29 on onnxruntime reports its use to its makers, unless told otherwise before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
