"""The compiled half of models/resize.py; all else is in pyproject.toml, where setuptools only tries extensions yet."""

from setuptools import Extension, setup

# Optional: without a compiler Pillow resizes, to the same pixels, five to seven times as slowly.
setup(ext_modules=[Extension("models._resize", ["models/_resize.c"], py_limited_api=True, optional=True)])
