"""A prompt's evaluated state in a file, so that a long system prompt is evaluated once and not at each start.

The file belongs to one model, opened in one way: anything else in it is refused and evaluated anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import asdict
from typing import TYPE_CHECKING

from edgepack.edge.llama.engines import with_logits
from edgepack.errors import ModelRuntimeError, UsageError
from edgepack.files.claim import claimed_output
from edgepack.files.output import atomic_output
from edgepack.files.source import open_source

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.edge.llama.engine import OpenModel
    from edgepack.edge.llama.runtime import LoadedModel

_MAGIC = b"EPPROMPT"
_HEAD = struct.Struct("<8sIQ32s")  # magic, bytes of the JSON, bytes of the state, SHA-256 of both
_MOST_JSON = 64 << 20


def load_prompt_state(opened: OpenModel, path: Path) -> int:
    """Restore the state in `path` into `opened`.

    Returns:
        Tokens that need not be evaluated; 0 where the file is absent, damaged or belongs to another model.
    """
    model = with_logits(opened, "a prompt's state in a file")
    try:
        with open_source(path) as stream:
            magic, n_json, n_state, digest = _HEAD.unpack(stream.read(_HEAD.size))
            if magic != _MAGIC or n_json > _MOST_JSON or path.stat().st_size != _HEAD.size + n_json + n_state:
                return 0
            text, state = stream.read(n_json), stream.read(n_state)
        if hashlib.sha256(text + state).digest() != digest:
            return 0
        record = json.loads(text)
        if record["identity"] != _identity(model):
            return 0
        model.restore_state(state, record["tokens"])
    except (OSError, struct.error, ValueError, KeyError, TypeError, ModelRuntimeError, UsageError):
        return 0
    return len(record["tokens"])


def save_prompt_state(opened: OpenModel, tokens: list[int], path: Path) -> None:
    """Evaluate `tokens` and write the state to `path`, whole or not at all.

    Raises:
        UsageError: something else than a prompt's state lies there, or another run is writing it.
    """
    model = with_logits(opened, "a prompt's state in a file")
    with claimed_output(path, inputs=[model.path], force=True):
        _check_is_state(path)
        model.evaluate(tokens)
        state = model.save_state()
        text = json.dumps({"identity": _identity(model), "tokens": tokens}).encode()
        with atomic_output(path) as stream:
            stream.write(_HEAD.pack(_MAGIC, len(text), len(state), hashlib.sha256(text + state).digest()))
            stream.write(text)
            stream.write(state)


def _check_is_state(path: Path) -> None:
    """Refuse to replace a file that does not begin as a prompt's state does."""
    if not os.path.lexists(path):
        return
    with open_source(path) as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise UsageError(f"--prompt-cache: {path} exists and is no prompt's state: it is not replaced")


def _identity(model: LoadedModel) -> str:
    """What a state depends on: the model's file, how it was opened, and llama.cpp's version."""
    from llama_cpp import llama_cpp as c

    status = model.path.stat()
    options = {key: repr(value) for key, value in asdict(model.options).items() if not key.startswith("threads")}
    with open_source(model.path) as stream:
        head = hashlib.sha256(stream.read(1 << 20)).hexdigest()
    return repr((status.st_size, status.st_mtime_ns, head, sorted(options.items()), c.llama_version()))
