"""Keeps what libraries say to their own users away from ours: warnings, advice, progress bars of their own.

Set before any of them is imported; whoever sets the variables or PYTHONWARNINGS otherwise keeps their choice.
"""

from __future__ import annotations

import os
import sys
import warnings

# Read by transformers, huggingface_hub and tokenizers when they are first imported.
_VARIABLES = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def quiet_libraries() -> None:
    """Show no warning that is a developer's business; `python -W` and PYTHONWARNINGS bring them back."""
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
