"""`vilt-bench claims`: ViLT and the designs that the paper compares it with, timed stage by stage on this machine."""
