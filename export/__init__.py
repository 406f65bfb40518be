"""Checkpoint to artifact: the only package that knows torch."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from its import on, onnxruntime for Linux reports to its makers
