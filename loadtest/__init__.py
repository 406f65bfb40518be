"""Measures a server from outside: knows only HTTP."""
