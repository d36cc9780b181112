"""Builds the compiled kernels; everything else about the distribution stands in pyproject.toml."""

from setuptools import setup

setup(
    cffi_modules=["src/edgepack/kernels/build.py:builder"],
    # The kernels use the stable ABI: one wheel a platform serves every Python from 3.10 on.
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
