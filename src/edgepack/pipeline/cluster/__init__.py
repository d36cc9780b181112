"""Exports whose work the workers of a cluster do: byte for byte the file that one machine makes."""
