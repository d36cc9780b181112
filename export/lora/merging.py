"""A checkpoint with an adapter merged in: ties, the number of tokens and the tokenizer follow from what it changes.

The rule is what `PeftModel.from_pretrained` computes. Its `merge_and_unload` adds the factors of one of two tied
matrices to both, which is another function (docs/lab-notes.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import AdapterError
from edgepack.export.lora.adapter import AdaptedTensors, Adapter, read_adapter
from edgepack.export.ties import AliasedTensors, embedding_and_head, is_tied, known_family, untied

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgepack.model import Checkpoint, TensorSource

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "rwkv_vocab_v20230424.txt")
_TEMPLATE = "chat_template.jinja"
_CONV1D_TYPE = "gpt2"


def merge_adapter(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint with the PEFT LoRA in `folder` merged into its tensors; neither is modified.

    Raises:
        AdapterError: not a LoRA, of a kind that cannot be merged, or made for another model.
        CheckpointError: a file that is missing, truncated or hostile.
    """
    model = adaptable(checkpoint)
    adapter = read_adapter(folder, model.tensors, conv1d=model.conv1d)
    unread = _left_out(checkpoint, adapter)
    adapter, config, notes = _with_ties(adapter, model, checkpoint.config)
    base = model.tensors if config is not checkpoint.config else checkpoint.tensors
    config, resized = _with_vocabulary(adapter, model, config)
    tokenizer, template, chosen = _texts(folder)
    return replace(
        checkpoint,
        config=config,
        tensors=AdaptedTensors(base, adapter),
        notes=(*checkpoint.notes, *adapter.notes, *unread, *notes, *resized, *chosen),
        tokenizer=tokenizer or checkpoint.tokenizer,
        template=template or checkpoint.template,
    )


def _left_out(checkpoint: Checkpoint, adapter: Adapter) -> tuple[str, ...]:
    """A line where an adapter changes tensors of other modalities, which the part that is exported lacks."""
    family = known_family(checkpoint)
    if family is None or not family.nested:
        return ()
    other = sorted(name for name in adapter.changed if any(re.search(pattern, name) for pattern in family.unused))
    if not other:
        return ()
    if len(other) == len(adapter.changed):
        raise AdapterError(
            f"{adapter.path}: it changes nothing of the part that reads and writes text, only '{other[0]}'"
        )
    return (f"adapter: {len(other)} of its changes are of other modalities and left out, such as '{other[0]}'",)


@dataclass(frozen=True)
class Adaptable:
    """A model's tensors as an adapter may name them.

    Attributes:
        tensors: with the head's name, even where the head is the embedding.
        embedding: its name, None where the family is not known or has no head.
        head: likewise.
        tied: whether both are one matrix.
        conv1d: whether its layers store weights as [in, out].
    """

    tensors: TensorSource
    embedding: str | None = None
    head: str | None = None
    tied: bool = False
    conv1d: bool = False


def adaptable(checkpoint: Checkpoint) -> Adaptable:
    """What an adapter may change: a tied head has a name too."""
    names, conv1d = embedding_and_head(checkpoint), checkpoint.config.get("model_type") == _CONV1D_TYPE
    if names is None:
        return Adaptable(checkpoint.tensors, conv1d=conv1d)
    embedding, head = names
    tied = is_tied(checkpoint)
    tensors = checkpoint.tensors
    if tied and head not in tensors.specs and embedding in tensors.specs:
        tensors = AliasedTensors(tensors, {head: embedding})
    return Adaptable(tensors, embedding, head, tied, conv1d)


def _with_ties(
    adapter: Adapter, model: Adaptable, config: Mapping[str, Any]
) -> tuple[Adapter, Mapping[str, Any], tuple[str, ...]]:
    """The adapter and the configuration where embedding and head are one: changed together, or apart from now on."""
    embedding, head = model.embedding, model.head
    if not model.tied or embedding is None or head is None or not {embedding, head} & adapter.changed:
        return adapter, config, ()
    replaced, rows = dict(adapter.replaced), dict(adapter.rows)
    for one, other in ((embedding, head), (head, embedding)):
        if one in replaced and one not in adapter.copies and other not in adapter.copies:
            replaced.setdefault(other, replaced[one])  # the one matrix that both are
    if embedding in rows and head not in rows and head not in adapter.copies:
        rows[head] = rows[embedding]
    adapter = replace(adapter, replaced=replaced, rows=rows)
    if _equal_changes(adapter, embedding, head):
        return _without(adapter, head), config, ()
    changed = " and ".join(f"'{name}'" for name in (embedding, head) if name in adapter.changed)
    note = f"ties: the adapter changes {changed} of a base that ties them: head and embedding are kept apart"
    return adapter, untied(config), (note,)


def _equal_changes(adapter: Adapter, embedding: str, head: str) -> bool:
    if adapter.low_rank.keys() & {embedding, head}:
        return False
    first, second = (adapter.replaced.get(name) for name in (embedding, head))
    if (first is None) != (second is None) or (first is not None and not np.array_equal(first, second)):  # type: ignore[arg-type]
        return False
    one, other = (adapter.rows.get(name) for name in (embedding, head))
    if one is None or other is None:
        return one is other
    return one.indices == other.indices and np.array_equal(one.values, other.values)


def _without(adapter: Adapter, name: str) -> Adapter:
    replaced = {key: array for key, array in adapter.replaced.items() if key != name}
    return replace(adapter, replaced=replaced, rows={key: rows for key, rows in adapter.rows.items() if key != name})


def _with_vocabulary(
    adapter: Adapter, model: Adaptable, config: Mapping[str, Any]
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The configuration with as many tokens as the adapter's matrices have rows."""
    adapted = AdaptedTensors(model.tensors, adapter).specs
    names = [name for name in (model.embedding, model.head) if name in adapted]
    rows = {name: adapted[name].shape[0] for name in names if name is not None}
    own = {name: model.tensors.specs[name].shape[0] for name in rows}
    if rows == own or model.embedding not in rows:
        return config, ()
    count = rows[model.embedding]
    notes = (f"adapter: tokens were added or removed in training: {count} rows instead of {own[model.embedding]}",)
    text = config.get("text_config")
    if isinstance(text, dict) and "vocab_size" in text:
        return {**config, "text_config": {**text, "vocab_size": count}}, notes
    return {**config, "vocab_size": count}, notes


def _texts(folder: Path) -> tuple[Path | None, Path | None, tuple[str, ...]]:
    """The folder of the tokenizer and the chat template, where the adapter's own decide; as AutoTokenizer would."""
    if any((folder / name).is_file() for name in _TOKENIZERS):
        return folder, folder, ("tokenizer: the adapter's own is taken, with its chat template",)
    if (folder / _TEMPLATE).is_file():
        return None, folder, (f"chat template: the adapter's {_TEMPLATE} is taken",)
    return None, None, ()
