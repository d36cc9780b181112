"""The Python API: what `edgepack.NAME` is. It checks and joins; all work is left to the parts below.

The command line calls it and adds text and exit codes. docs/api.md describes every function.
"""
