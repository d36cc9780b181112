"""Scores text with a Hugging Face checkpoint in torch: the reference a publisher has. Devices never import this.

The weights' order on disk is transformers' business.
"""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from edgepack.errors import CheckpointError, EdgepackError, TokenizerError
from edgepack.quant.calibration.empty_model import language_model_class
from edgepack.quant.calibration.stepwise import step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.edge.fidelity.scorers.scorer import Chunk


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from writing to the terminal while the block runs: warnings, advice, progress bars."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def checkpoint_errors(path: Path, error: type[EdgepackError] = CheckpointError) -> Iterator[None]:
    """Turn whatever transformers raises while it reads `path` into one line."""
    try:
        with quiet_transformers():
            yield
    except EdgepackError:
        raise
    except Exception as reason:
        first_line = str(reason).strip().splitlines()[0] if str(reason).strip() else type(reason).__name__
        raise error(f"{path}: transformers cannot read it: {first_line}") from reason


class CheckpointTokenizer:
    """The tokenizer of a Hugging Face folder.

    Raises:
        TokenizerError: there is none that transformers can read.
    """

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        with checkpoint_errors(folder, TokenizerError):
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )

    def tokenize(self, text: str) -> NDArray[np.int32]:
        """Token ids [n] of `text`, with BOS in front where the model wants it; EOS is never appended."""
        with quiet_transformers():
            ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        bos = self.bos
        return np.array(ids if bos is None else [bos, *ids], dtype=np.int32)

    def piece(self, token: int) -> str:
        """The text of one token, special ones spelled out."""
        return str(self._tokenizer.decode([token], skip_special_tokens=False))

    def text(self, tokens: list[int]) -> str:
        """The text of token ids, without special ones."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    @property
    def bos(self) -> int | None:
        """The token that begins every text, or None where the model wants none."""
        with quiet_transformers():
            ids: list[int] = self._tokenizer("a", add_special_tokens=True)["input_ids"]
        bos: int | None = self._tokenizer.bos_token_id
        return bos if bos is not None and ids[:1] == [bos] else None


class TorchScorer:
    """A Hugging Face checkpoint run by transformers, float32 unless told otherwise.

    Args:
        folder: `config.json`, safetensors and tokenizer files.
        dtype: torch's dtype of weights and arithmetic.
        threads: torch's threads (of the whole process); 0 leaves them.

    Raises:
        CheckpointError: transformers cannot read it.
    """

    def __init__(self, folder: Path, *, dtype: torch.dtype = torch.float32, threads: int = 0) -> None:
        self.folder = folder
        self._dtype = dtype
        if threads:
            torch.set_num_threads(threads)
        self.tokenizer = CheckpointTokenizer(folder)
        with checkpoint_errors(folder):
            settings = transformers.AutoConfig.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
            auto, _model_class = language_model_class(settings)
            self._model: Any
            self._model, found = auto.from_pretrained(
                str(folder),
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                attn_implementation="eager",
                output_loading_info=True,
            )
        if missing := sorted(found["missing_keys"]):  # transformers draws them at random
            raise CheckpointError(f"{folder}: transformers finds no tensor for '{missing[0]}' ({len(missing)} in all)")
        self._model.eval()

    @property
    def label(self) -> str:
        """The folder's name and the arithmetic."""
        return f"{self.folder.resolve().name} (transformers, {str(self._dtype).removeprefix('torch.')})"

    @property
    def vocabulary(self) -> int:
        """Width of a row of logits."""
        return int(self._model.get_output_embeddings().weight.shape[0])

    @property
    def context_limit(self) -> int:
        """The context that the model was trained with."""
        limit: int | None = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        return limit or 1 << 30

    def score(self, chunk: Chunk) -> NDArray[np.float32]:
        """Logits [chunk.scored, vocabulary], float32 whatever the arithmetic."""
        ids = torch.from_numpy(chunk.tokens.astype(np.int64))[None]
        with torch.inference_mode(), quiet_transformers():
            logits = self._model(input_ids=ids, use_cache=False, logits_to_keep=len(chunk.tokens) - chunk.first).logits
        kept: NDArray[np.float32] = logits[0, -(chunk.scored + 1) : -1].float().numpy()
        return kept

    def in_precision(self, name: str) -> TorchScorer:
        """The same checkpoint in other arithmetic: `bfloat16` or `float16`, for the noise floor."""
        return TorchScorer(self.folder, dtype=getattr(torch, name))

    def continue_greedily(self, tokens: NDArray[np.int32], count: int) -> NDArray[np.int32]:
        """The `count` tokens that follow `tokens` when each is the most probable one."""
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        written, cache = [], None
        with torch.inference_mode(), quiet_transformers():
            for _step in range(count):
                logits, cache = step(self._model, ids, cache, logits_to_keep=1)
                ids = logits[:, -1].argmax(-1, keepdim=True)
                written.append(int(ids))
        return np.array(written, dtype=np.int32)

    def sample(self, sequences: int, length: int, seed: int = 0) -> str:
        """Text that the model itself writes at temperature 1: the same on every run of the same versions.

        Args:
            sequences: how many are written side by side, joined by blank lines.
            length: tokens of each, BOS included.
            seed: of the draws.
        """
        generator = torch.Generator().manual_seed(seed)
        first = self.tokenizer.bos
        ids = torch.full((sequences, 1), 0 if first is None else first, dtype=torch.int64)
        written, cache = [], None
        with torch.inference_mode(), quiet_transformers():
            for _step in range(length - 1):
                logits, cache = step(self._model, ids, cache, logits_to_keep=1)
                ids = torch.multinomial(logits[:, -1].float().softmax(-1), 1, generator=generator)
                written.append(ids)
        rows = torch.cat(written, dim=1).tolist()
        return "\n\n".join(self.tokenizer.text(row) for row in rows)

    def close(self) -> None:
        """Drop the model."""
        self._model = None
