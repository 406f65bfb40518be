"""HTTP in, answers out, in bounded time: the only package that knows clocks, queues and sockets."""
