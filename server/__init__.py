"""HTTP in, answers out, in bounded time: the only package that knows clocks, queues and sockets."""

import os

# From 1.29 on onnxruntime reports its use to its makers, unless told otherwise before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
