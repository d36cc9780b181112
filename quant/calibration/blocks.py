"""A transformer run one block at a time: transformers' own modules, weights from any `TensorSource`.

Only one block's weights are in memory. What is measured on the way is left to `sweep` and `statistics`.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from edgepack.errors import CheckpointError, NumericError, UnsupportedModelError
from edgepack.model import read_tensor
from edgepack.quant.calibration.checkpoint_names import checkpoint_names
from edgepack.quant.calibration.empty_model import block_list, empty_model, module_of
from edgepack.quant.calibration.products import layers_multiply_in, sums_stay_float32

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from edgepack.model import Checkpoint, TensorSource


class _StopForwardError(Exception):
    """Ends the model's forward once its first block has been reached."""


@dataclass(frozen=True)
class BlockCall:
    """What the model hands to a block beside the hidden state: masks, positions, rotary tables."""

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]


class _Recorder(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Stands in for a block: keeps what the model hands to it and passes the hidden state on.

    Models ask their blocks for settings such as `block_type`; the block that it stands for answers.
    """

    def __init__(
        self, block: nn.Module, as_tuple: bool, output: torch.Tensor | None = None, stop: bool = False
    ) -> None:
        super().__init__()
        self.__dict__["block"] = block  # not as a child: its parameters are not the recorder's
        self.as_tuple, self.output, self.stop = as_tuple, output, stop
        self.hidden = torch.empty(0)
        self.call = BlockCall((), {})

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)

    def forward(self, hidden_states: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        self.hidden, self.call = hidden_states, BlockCall(arguments, keywords)
        if self.stop:
            raise _StopForwardError
        output = hidden_states if self.output is None else self.output
        return (output,) if self.as_tuple else output


@dataclass(frozen=True)
class Block:
    """One transformer block with its weights in memory.

    Attributes:
        index: its place in the model, from 0.
        module: transformers' own module.
        linears: checkpoint name of each two-dimensional weight → the linear module that holds it.
        names: path of each parameter inside `module` → its name in the checkpoint.
        products: in what type its layers multiply.
    """

    index: int
    module: nn.Module
    linears: Mapping[str, nn.Module]
    names: Mapping[str, str]
    products: torch.dtype = torch.float32

    def weight(self, name: str) -> torch.Tensor:
        """Weight `name` as [out, in], whichever way the checkpoint holds it; a view, not a copy."""
        module = self.linears[name]
        return module.weight.data.T if is_transposed(module) else module.weight.data

    def set_weight(self, name: str, weight: torch.Tensor) -> None:
        """Replace weight `name`, given as [out, in]."""
        self.weight(name).copy_(weight)

    def as_stored(self, name: str) -> NDArray[np.float32]:
        """Tensor `name` of the block in the checkpoint's own shape, float32, owned by the caller."""
        path = next(path for path, known in self.names.items() if known == name)
        return np.array(self.module.get_parameter(path).detach().cpu().float().numpy(), dtype=np.float32)

    def run(self, hidden: torch.Tensor, call: BlockCall) -> torch.Tensor:
        """The block's output for `hidden` [batch, length, width], in its type."""
        with layers_multiply_in(self.products, hidden.device):
            output = self.module(hidden, *call.arguments, **call.keywords)
        return (output[0] if isinstance(output, tuple) else output).to(hidden.dtype)


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear keeps its weight as [in, out], as GPT-2's Conv1D does."""
    return type(module).__name__ == "Conv1D"


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is a matrix product with a weight that passes may change."""
    return isinstance(module, nn.Linear) or is_transposed(module)


class BlockwiseModel:
    """A causal language model whose blocks are loaded one at a time.

    Args:
        checkpoint: configuration and weights; only read.
        device: a torch device, such as `cpu` or `cuda`.
        dtype: of weights and activations; float32, or float64 for exact comparisons.
        products: in what type factors are multiplied; `products.own_products` where text calibrates something.

    Raises:
        UnsupportedModelError: transformers has no such causal language model, or it has no list of blocks.
        CheckpointError: a weight of the model is not in the checkpoint.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        products: torch.dtype = torch.float32,
    ) -> None:
        self.checkpoint = checkpoint
        self.device, self.dtype, self.products = torch.device(device), dtype, products
        self.model = empty_model(checkpoint.config)
        self._list_path, self._blocks = block_list(self.model, checkpoint.config)
        self.source: TensorSource
        self._names, self.source = checkpoint_names(self.model, checkpoint.tensors)
        self._returns_tuple = False
        self._shell_depth = 0
        for name, buffer in self.model.named_buffers():
            module_of(self.model, name)._buffers[name.rpartition(".")[2]] = buffer.to(self.device)  # noqa: SLF001

    @property
    def block_count(self) -> int:
        """How many blocks the model has."""
        return len(self._blocks)

    def tensor_names(self, index: int) -> list[str]:
        """Checkpoint names of every tensor of block `index`."""
        prefix = f"{self._list_path}.{index}."
        return [name for path, name in self._names.items() if path.startswith(prefix)]

    @property
    def head_name(self) -> str | None:
        """Checkpoint name of the output matrix: the token embedding where both are tied."""
        head = self.model.get_output_embeddings()
        path = next((path for path, module in self.model.named_modules() if module is head), None)
        return None if path is None else self._names.get(f"{path}.weight", self.embedding_name)

    @property
    def embedding_name(self) -> str | None:
        """Checkpoint name of the token embedding."""
        table = self.model.get_input_embeddings()
        path = next(path for path, module in self.model.named_modules() if module is table)
        return self._names.get(f"{path}.weight")

    def run_experts_one_by_one(self) -> None:
        """From now on experts are a product each, not one grouped product of all."""
        for module in self.model.modules():
            if hasattr(getattr(module, "config", None), "_experts_implementation"):
                module.config._experts_implementation = "eager"  # noqa: SLF001

    @contextmanager
    def block(self, index: int) -> Iterator[Block]:
        """Block `index` with its weights loaded; they are dropped when the context ends."""
        module, prefix = self._blocks[index], f"{self._list_path}.{index}."
        with self._loaded(module, prefix):
            names = {path: self._names[prefix + path] for path, _ in module.named_parameters()}
            linears = {names[f"{path}.weight"]: inner for path, inner in module.named_modules() if is_linear(inner)}
            yield Block(index, module, linears, names, self.products)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the first block receives for `tokens` [batch, length]: [batch, length, width]."""
        return self._record(tokens, stop=True)[0].hidden.detach()

    def calls(self, tokens: torch.Tensor) -> list[BlockCall]:
        """What each block receives beside the hidden state for tokens of this shape [batch, length]."""
        for as_tuple in (self._returns_tuple, True):
            self._returns_tuple = as_tuple
            try:
                recorders = self._record(tokens, before_head=True)
            except (IndexError, RuntimeError, TypeError, ValueError):
                continue  # the model took output[0] of a tensor: its blocks return tuples
            if all(recorder.hidden.ndim == 3 for recorder in recorders):
                return [recorder.call for recorder in recorders]
        raise UnsupportedModelError(f"model type '{self.checkpoint.config.get('model_type')}': cannot run by blocks")

    def logits(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [batch, length, vocabulary] from the last block's output for `tokens`."""
        logits: torch.Tensor = self._run_shell(tokens, hidden)[1]
        return logits

    def head_inputs(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """What the output matrix receives, from the last block's output: [batch, length, width]."""
        with self._stopping_at_head(True) as seen:
            self._run_shell(tokens, hidden)
        return seen[0]

    @contextmanager
    def shell(self) -> Iterator[None]:
        """Keep everything but the blocks (embedding, final norm, output matrix) loaded; may be nested."""
        with self._with_blocks(nn.ModuleList()), ExitStack() as stack:
            if self._shell_depth == 0:
                stack.enter_context(self._loaded(self.model, ""))
            self._shell_depth += 1
            try:
                yield
            finally:
                self._shell_depth -= 1

    def _record(self, tokens: torch.Tensor, stop: bool = False, before_head: bool = False) -> list[_Recorder]:
        with self._stopping_at_head(before_head):
            return self._run_shell(tokens, None, stop)[0]

    @contextmanager
    def _stopping_at_head(self, wanted: bool) -> Iterator[list[torch.Tensor]]:
        """Let the model's forward end where its output matrix would begin; gives a list for what enters that."""
        seen: list[torch.Tensor] = []

        def stop(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            seen.append(arguments[0])
            raise _StopForwardError

        head = self.model.get_output_embeddings()
        handle = head.register_forward_pre_hook(stop) if wanted and head is not None else None
        try:
            yield seen
        finally:
            if handle is not None:
                handle.remove()

    def _run_shell(
        self, tokens: torch.Tensor, hidden: torch.Tensor | None, stop: bool = False
    ) -> tuple[list[_Recorder], Any]:
        """The model's own forward with every block replaced; the last one gives `hidden`."""
        recorders = [_Recorder(block, self._returns_tuple, stop=stop) for block in self._blocks]
        recorders[-1].output = hidden
        with self.shell(), self._with_blocks(nn.ModuleList(recorders)), sums_stay_float32(self.products):
            try:
                return recorders, self.model(input_ids=tokens.to(self.device), use_cache=False).logits
            except _StopForwardError:
                return recorders, None

    @contextmanager
    def _with_blocks(self, blocks: nn.ModuleList) -> Iterator[None]:
        """Put `blocks` in the place of the model's own."""
        owner, attribute = module_of(self.model, self._list_path), self._list_path.rpartition(".")[2]
        before = getattr(owner, attribute)
        setattr(owner, attribute, blocks)
        try:
            yield
        finally:
            setattr(owner, attribute, before)

    @contextmanager
    def _loaded(self, module: nn.Module, prefix: str) -> Iterator[None]:
        """Parameters of `module` read from the source, and dropped at the end."""
        empty = dict(module.named_parameters())
        try:
            self.load(module, prefix)
            yield
        finally:
            for path, parameter in empty.items():
                self._assign(module, path, parameter)

    def load(self, module: nn.Module, prefix: str) -> None:
        """Read every parameter of `module`, which stands at `prefix` (with its dot) in the model."""
        for path, parameter in list(module.named_parameters()):
            self._assign(module, path, self._read(prefix + path, tuple(parameter.shape)))

    def _assign(self, module: nn.Module, path: str, value: torch.Tensor) -> None:
        parameter = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
        module_of(module, path)._parameters[path.rpartition(".")[2]] = parameter  # noqa: SLF001

    def _read(self, path: str, shape: tuple[int, ...]) -> torch.Tensor:
        name = self._names.get(path) or self.embedding_name
        if name is None:
            raise CheckpointError(f"the checkpoint has no tensor for '{path}'")
        array = read_tensor(self.source, name)
        if array.shape != shape:
            raise CheckpointError(f"tensor '{name}': expected shape {shape}, got {array.shape}")
        if not np.isfinite(array).all():
            raise NumericError(f"tensor '{name}': expected finite weights, got NaN or infinity")
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, self.dtype)


def whole_model(checkpoint: Checkpoint, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """The whole model with all its weights in memory: for sampling, and as a reference in tests."""
    blockwise = BlockwiseModel(checkpoint, device, dtype)
    blockwise.load(blockwise.model, "")
    return blockwise.model
