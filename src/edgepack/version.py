"""The one place that holds the version; it knows nothing else."""

__version__ = "0.1.0"
