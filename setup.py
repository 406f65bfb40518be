"""The compiled parts; all else is in pyproject.toml, where setuptools only tries extensions yet.

Both are optional. Without models/_resize.c Pillow resizes, to the same pixels, five to seven times as slowly. Without
server/gpu/_operators.c artifacts that were exported with --kernels are not served.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension("models._resize", ["models/_resize.c"], py_limited_api=True, optional=True),
        Extension("server.gpu._operators", ["server/gpu/_operators.c"], py_limited_api=True, optional=True),
    ]
)
