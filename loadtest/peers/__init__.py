"""This server beside others that serve the same model: alternately, in one run, with the same requests."""
