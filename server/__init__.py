"""HTTP in, answers out, in bounded time: the only package that knows clocks, queues and sockets."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from its import on, onnxruntime for Linux reports to its makers
