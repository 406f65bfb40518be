"""Servers as others would write them, which `vilt-bench peers` compares with ours: one file and one route each."""
