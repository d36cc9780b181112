"""The form in which an architecture family is written down: tensor rules, metadata, what cannot be honoured.

Families themselves are data, one a file in `export/architectures`; turning rules into a plan is left to
`export.rules.mapping`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgepack.export.rules.backwards import Backwards

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows
    from edgepack.gguf.types import Value
    from edgepack.model import TensorSource

    Transform = Callable[[Rows, ModelConfig], Rows]
    Dimensions = Mapping[str, int]


@dataclass(frozen=True)
class Origin:
    """Another way in which checkpoints hold a tensor, such as experts fused in one.

    Attributes:
        sources: as `TensorRule.sources`.
        transform: as `TensorRule.transform`.
    """

    sources: str | tuple[str, ...]
    transform: Transform | None = None


@dataclass(frozen=True)
class TensorRule:
    """How one GGUF tensor (or one a layer) is made from tensors of the checkpoint.

    Attributes:
        target: GGUF name; `{i}` is the layer.
        sources: checkpoint names; several are joined along their first dimension; `{e}` in a name stacks
            the experts along a new first dimension (`{h}` query heads, `{k}` key-value heads), `{n}` is the number
            of a layer behind the last (of prediction).
        shape: names of dimensions, such as `q d`, that the result must have (see `standard_dimensions`).
        transform: rows in, rows out, applied to each source before they are joined.
        optional: the tensor may be missing from the checkpoint.
        when: whether layer i has this tensor; every layer where None.
        alternatives: tried in turn where the checkpoint lacks the first of `sources`.
        stacked: several sources are stacked along a new first dimension, not joined.
    """

    target: str
    sources: str | tuple[str, ...]
    shape: str
    transform: Transform | None = None
    optional: bool = False
    when: Callable[[ModelConfig, int], bool] | None = None
    alternatives: tuple[Origin, ...] = ()
    stacked: bool = False

    @property
    def origins(self) -> tuple[Origin, ...]:
        """The rule's own origin, then the alternatives."""
        return (Origin(self.sources, self.transform), *self.alternatives)


@dataclass(frozen=True)
class Requirement:
    """A setting that llama.cpp's graph takes for granted; any other value is refused by name.

    Attributes:
        key: of config.json; several spellings may be given. `rope_parameters.X` is looked up wherever
            transformers 4 or 5 would have put it.
        allowed: the values that are honoured, or what computes them; an absent key is fine when `absent_is_fine`.
        why: the end of the sentence "… , because …".
    """

    key: str | tuple[str, ...]
    allowed: tuple[Any, ...] | Callable[[ModelConfig], tuple[Any, ...]]
    why: str
    absent_is_fine: bool = True

    @property
    def keys(self) -> tuple[str, ...]:
        """Every spelling, the usual one first."""
        return (self.key,) if isinstance(self.key, str) else self.key

    def violation(self, config: ModelConfig) -> str | None:
        """The refusal as a sentence, or None where the requirement holds."""
        values = [
            config.rope.get(key[16:]) if key.startswith("rope_parameters.") else config.get(key) for key in self.keys
        ]
        value = next((value for value in values if value is not None), None)
        allowed = self.allowed(config) if callable(self.allowed) else self.allowed
        if value in allowed or (value is None and self.absent_is_fine):
            return None
        expected = " or ".join("none" if each is None else repr(each) for each in allowed)
        return f"{self.keys[0]} is {value!r}: llama.cpp needs {expected}, because {self.why}"


def standard_dimensions(config: ModelConfig) -> dict[str, int]:
    """D hidden · q query heads × head width · kv · ff feed-forward · v vocabulary · h head width · e experts.

    Of heads (queries') and kv_heads it says how many; a model of experts alone has no ff.
    """
    sizes = {
        "d": config.hidden,
        "q": config.n_heads * config.head_dim,
        "kv": config.n_kv_heads * config.head_dim,
        "v": config.vocab_size,
        "h": config.head_dim,
        "e": config.n_experts,
        "heads": config.n_heads,
        "kv_heads": config.n_kv_heads,
    }
    if config.get("intermediate_size") or not config.n_experts:
        sizes["ff"] = config.count("intermediate_size")
    return sizes


def trunk_blocks(config: ModelConfig) -> int:
    """As many blocks as the configuration has layers."""
    return config.n_layers


def nothing_computed(_config: ModelConfig) -> dict[str, Rows]:
    """For families without computed tensors."""
    return {}


def nothing_stored(_config: ModelConfig, _source: TensorSource) -> dict[str, Value]:
    """For families whose metadata comes from the configuration alone."""
    return {}


def nothing_derived(_config: ModelConfig) -> dict[str, Any]:
    """For families whose settings stand where they are looked for."""
    return {}


def no_other_family(_config: ModelConfig) -> Family | None:
    """For classes that become one architecture, whatever their settings."""
    return None


def nothing_to_remark(_config: ModelConfig) -> tuple[str, ...]:
    """For families that llama.cpp computes as transformers does."""
    return ()


def nothing_superfluous(_config: ModelConfig) -> tuple[str, ...]:
    """For families of which every layer reads all of its tensors."""
    return ()


def nothing_observed(_names: Collection[str]) -> dict[str, Any]:
    """For families whose configuration says everything."""
    return {}


BUFFERS = (r"rotary_emb\.inv_freq$", r"\.attn\.(masked_)?bias$")
"""Checkpoint tensors that the configuration makes anew."""


@dataclass(frozen=True)
class Family:
    """One architecture of llama.cpp and the checkpoints that become it.

    Attributes:
        name: `general.architecture`.
        classes: values of config.json's `architectures`.
        defaults: what transformers takes for keys that a published config.json may lack.
        tensors: rules; a checkpoint's tensor that no rule uses is an error.
        metadata: the `{name}.*` keys, without the tokenizer's.
        requirements: settings that must hold.
        dimensions: the names that rules' shapes use.
        computed: tensors that are not in the checkpoint, such as rope factors; what the checkpoint has comes first.
        unused: regular expressions of checkpoint tensors that carry nothing (buffers).
        superfluous: more of them, such as the keys of layers that share those of another, by the configuration.
        tied_head: the head's checkpoint name: left out where the configuration ties it to the embedding.
        renames: other beginnings of names: (in the rules, in such checkpoints), tried in turn.
        nested: the settings stand under `text_config`, beside those of other modalities, which are left out.
        blocks: how many values `{i}` takes.
        stored: keys whose values stand in tensors, such as an activation's parameters.
        spellings: other names of settings: as the rules call them → as some config.json do.
        headless: the graph runs without a head, so that a model which gives embeddings may lack one.
        derived: settings under other keys or in other forms, such as a pattern of letters for the kinds of layers,
            as the family reads them; they replace what the configuration says.
        instead: the family of a configuration of the same class that needs another graph; None where this one fits.
        remarks: lines that the user should know of where llama.cpp computes something else and no file can change it.
        observed: settings that only the names of the checkpoint's tensors tell, such as how many layers of
            prediction there are; they replace what the configuration says.
        backwards: what reading a GGUF into a checkpoint needs beside the rules.
    """

    name: str
    classes: tuple[str, ...]
    tensors: tuple[TensorRule, ...]
    metadata: Callable[[ModelConfig], dict[str, Value]]
    requirements: tuple[Requirement, ...] = ()
    dimensions: Callable[[ModelConfig], Dimensions] = standard_dimensions
    computed: Callable[[ModelConfig], dict[str, Rows]] = nothing_computed
    unused: tuple[str, ...] = BUFFERS
    superfluous: Callable[[ModelConfig], tuple[str, ...]] = nothing_superfluous
    tied_head: str | None = "lm_head.weight"
    renames: tuple[tuple[str, str], ...] = ()
    nested: bool = False
    blocks: Callable[[ModelConfig], int] = trunk_blocks
    stored: Callable[[ModelConfig, TensorSource], dict[str, Value]] = nothing_stored
    spellings: Mapping[str, str] = field(default_factory=dict)
    headless: bool = False
    derived: Callable[[ModelConfig], Mapping[str, Any]] = nothing_derived
    instead: Callable[[ModelConfig], Family | None] = no_other_family
    remarks: Callable[[ModelConfig], tuple[str, ...]] = nothing_to_remark
    observed: Callable[[Collection[str]], Mapping[str, Any]] = nothing_observed
    defaults: Mapping[str, Any] = field(default_factory=dict)
    backwards: Backwards = field(default_factory=Backwards)
