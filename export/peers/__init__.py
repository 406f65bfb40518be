"""Servers as others would write them, for `vilt-bench peers` to compare ours with: one file each, one route."""
