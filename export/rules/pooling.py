"""What of sentence-transformers' modules llama.cpp has: the pooling, in one architecture two linear layers.

Whatever else follows the transformer is refused by name, as embeddings would differ; what the file cannot hold of
normalisation and prompts stands in keys of our own, which `edgepack embed` honours. Heads that give scores instead are
`export.rules.classifier`'s, reading the files `export.sentence_modules`'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import CheckpointError, UnsupportedModelError
from edgepack.export.formats.safetensors_file import SafetensorsFile
from edgepack.export.rows import SourceRows
from edgepack.export.sentence_modules import Dense, SentenceModules, read_modules
from edgepack.gguf import keys
from edgepack.gguf.types import Value, boolean, string, u32

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows

_POOLING = {"mean": 1, "cls": 2, "lasttoken": 3}  # enum llama_pooling_type
# as the flags of versions up to 5 have them, `pooling_mode_…`
_FLAGS = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "weightedmean": "weightedmean_tokens",
          "lasttoken": "lasttoken"}  # fmt: skip
_WITH_DENSE = "gemma-embedding"  # the architecture whose loader reads dense_2 and dense_3
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def pooling_metadata(config: ModelConfig, name: str) -> dict[str, Value]:
    """`{name}.pooling_type`, the sizes of linear layers, normalisation and prompts, as far as the model says any.

    Raises:
        UnsupportedModelError: a module that llama.cpp does not have.
    """
    modules = sentence_modules(config)
    if modules is None:
        return {}
    found: dict[str, Value] = {}
    pooling = _pooling_of(modules)
    if pooling is not None:
        found[f"{name}.pooling_type"] = u32(pooling)
    for number, dense in _dense_of(modules, config, name).items():
        found[f"{name}.dense_{number}_feat_in"] = u32(dense.inner)
        found[f"{name}.dense_{number}_feat_out"] = u32(dense.outer)
    if modules.normalizes:
        found[keys.EMBEDDING_NORMALIZE] = boolean(True)
    found |= {f"{keys.EMBEDDING_PROMPT}{prompt}": string(text) for prompt, text in sorted(modules.prompts.items())}
    if modules.default_prompt in modules.prompts and modules.default_prompt is not None:
        found[keys.EMBEDDING_DEFAULT_PROMPT] = string(modules.default_prompt)
    return found


def pooling_type(config: ModelConfig) -> int | None:
    """What sentence-transformers does with the tokens' embeddings; None where it says nothing.

    Raises:
        UnsupportedModelError: a pooling that llama.cpp does not have.
    """
    modules = sentence_modules(config)
    return None if modules is None else _pooling_of(modules)


def dense_tensors(config: ModelConfig, name: str) -> dict[str, Rows]:
    """GGUF name → rows of the linear layers after the pooling.

    Raises:
        UnsupportedModelError: a layer that llama.cpp does not have.
        CheckpointError: weights that are missing or of another shape.
    """
    modules = sentence_modules(config)
    if modules is None:
        return {}
    return {f"dense_{number}.weight": _rows(dense) for number, dense in _dense_of(modules, config, name).items()}


def pooling_notes(config: ModelConfig) -> tuple[str, ...]:
    """A line for each thing that sentence-transformers does and a GGUF cannot say."""
    modules = sentence_modules(config)
    if modules is None:
        return ()
    notes = []
    if modules.normalizes:
        notes.append("embeddings: sentence-transformers scales them to length 1; so does edgepack embed of this file")
    if modules.prompts:
        names = ", ".join(sorted(modules.prompts))
        default = f", {modules.default_prompt} by default" if modules.default_prompt else ""
        notes.append(f"embeddings: sentence-transformers puts a prompt before texts ({names}{default}): --prompt-name")
    if modules.prompts and not modules.include_prompt:
        notes.append("embeddings: sentence-transformers leaves the prompt's tokens out of the pooling, llama.cpp not")
    return tuple(notes)


def with_lowercasing(tokenizer: Mapping[str, Value], config: ModelConfig) -> dict[str, Value]:
    """The tokenizer's keys where sentence-transformers lower-cases texts before they are tokenised.

    Raises:
        UnsupportedModelError: a tokenizer that llama.cpp does not lower-case for.
    """
    modules = sentence_modules(config)
    if modules is None or not modules.lowercases:
        return dict(tokenizer)
    if keys.NORMALIZER_LOWERCASE not in tokenizer:
        raise UnsupportedModelError("sentence_bert_config.json: do_lower_case: llama.cpp lower-cases for BERT's alone")
    return {**tokenizer, keys.NORMALIZER_LOWERCASE: boolean(True)}


def sentence_modules(config: ModelConfig) -> SentenceModules | None:
    """The modules beside the model, None where there are none."""
    return None if config.folder is None else read_modules(config.folder)


def _pooling_of(modules: SentenceModules) -> int | None:
    if modules.others:
        raise UnsupportedModelError(
            f"modules.json: {modules.others[0]} follows the transformer, which llama.cpp does not have"
        )
    if not modules.modes:
        return None
    if len(modules.modes) != 1 or modules.modes[0] not in _POOLING:
        shown = " and ".join(_FLAGS.get(mode, mode) for mode in modules.modes)
        raise UnsupportedModelError(
            f"Pooling/config.json: pooling is {shown}: llama.cpp needs {' or '.join(_FLAGS[mode] for mode in _POOLING)}"
        )
    return _POOLING[modules.modes[0]]


def _dense_of(modules: SentenceModules, config: ModelConfig, name: str) -> dict[int, Dense]:
    """The number in llama.cpp's names → layer; the first takes what is pooled, the second gives as much again."""
    if not modules.dense:
        return {}
    shown = " then ".join(f"Dense({dense.inner} -> {dense.outer}, {dense.activation})" for dense in modules.dense)
    if name != _WITH_DENSE:
        raise UnsupportedModelError(f"modules.json: {shown} follows the pooling: llama.cpp's {name} has no such layer")
    plain = all(not dense.bias and dense.activation == "Identity" and not dense.residual for dense in modules.dense)
    fits = len(modules.dense) == 2 and modules.dense[0].inner == modules.dense[1].outer == config.hidden
    if not plain or not fits:
        raise UnsupportedModelError(
            f"modules.json: {shown} follows the pooling: llama.cpp's {name} has two, without bias and activation, from"
            f" {config.hidden} numbers and back to as many"
        )
    return dict(enumerate(modules.dense, start=2))


def _rows(dense: Dense) -> Rows:
    path = next((dense.folder / each for each in _WEIGHTS if (dense.folder / each).is_file()), None)
    if path is None:
        raise CheckpointError(f"{dense.folder}: no weights: expected {_WEIGHTS[0]}")
    if path.suffix == ".bin":
        from edgepack.export.formats.torch_file import TorchFile

        rows = SourceRows(TorchFile(path), "linear.weight")
    else:
        rows = SourceRows(SafetensorsFile(path), "linear.weight")
    if "linear.weight" not in rows.source.specs or rows.shape != (dense.outer, dense.inner):
        raise CheckpointError(f"{path}: expected linear.weight of {[dense.outer, dense.inner]}")
    return rows
