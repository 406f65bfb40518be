"""`vilt-bench claims`: ViLT and the designs it is compared with, timed stage by stage on this machine."""
