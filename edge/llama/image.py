"""The one place that touches llama.cpp's mtmd: images become embeddings, which stand between a prompt's tokens.

Which projector belongs to a model is `edge.install.projector`'s, whether a file is an image that may be opened
`image_file`'s, generating `runtime`'s.
"""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from edgepack.edge.llama.log import runtime_log
from edgepack.errors import ModelRuntimeError, UsageError
from edgepack.gguf.reader import read_header
from edgepack.gguf.types import GGMLType

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from typing_extensions import Self

    from edgepack.edge.llama.image_file import Picture
    from edgepack.edge.llama.runtime import LoadedModel

_TEXT = 0  # MTMD_INPUT_CHUNK_TYPE_TEXT
_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}  # enum llama_flash_attn_type
_SEEN = -1  # stands for an image's embedding among the ids that were evaluated; no prompt has it
_NO_TOKEN = -2  # ours for LLAMA_TOKEN_NULL, which mtmd takes for a token that the vocabulary lacks, and aborts on


class Eyes:
    """A projector opened beside a model; not thread-safe. Use it in a `with` block or call `close` before the model's.

    Args:
        path: the projector's GGUF, checked (`edge.llama.check_projector`).
        model: the model that reads its embeddings.

    Raises:
        ModelRuntimeError: llama.cpp refuses it, or it was made for another model; the text quotes its log.
    """

    def __init__(self, path: Path, model: LoadedModel) -> None:
        from llama_cpp import mtmd_cpp

        self._mtmd = mtmd_cpp
        self.path = path
        self.model = model
        self.marker = f"<__image_{secrets.token_hex(8)}__>"  # no text holds it by chance or on purpose
        self._marker = self.marker.encode()  # llama.cpp keeps no copy
        self._context: Any = None
        _log_here(mtmd_cpp)
        parameters = mtmd_cpp.mtmd_context_params_default()
        parameters.use_gpu = model.options.n_gpu_layers != 0
        parameters.n_threads = model.threads
        parameters.media_marker = self._marker
        parameters.warmup = False
        parameters.print_timings = False
        parameters.flash_attn_type = _FLASH_ATTENTION[model.options.flash_attention]
        with runtime_log().recording() as log:
            self._context = mtmd_cpp.mtmd_init_from_file(str(path).encode(), model.pointer, parameters)
        if not self._context:
            raise ModelRuntimeError(
                f"{path}: llama.cpp refuses the projector: {log.last_errors() or 'no reason given'}"
            )
        if not mtmd_cpp.mtmd_support_vision(self._context):
            self.close()
            raise ModelRuntimeError(f"{path}: expected a projector that sees, got one that only hears")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free it; a second call does nothing."""
        if self._context:
            self._mtmd.mtmd_free(self._context)
            self._context = None

    def embeddings(self, picture: Picture) -> list[NDArray[np.float32]]:
        """What the model reads of an image: float32 [tokens, width] for each piece that the image is cut into."""
        with self._chunks(self.marker, [picture], special=True) as chunks:
            return [self._encoded(chunk) for chunk in chunks if self._kind(chunk) != _TEXT]

    def evaluate(self, text: str, pictures: Sequence[Picture], *, add_special: bool, parse_special: bool) -> list[int]:
        """Bring the model's KV cache to exactly `text`, its markers replaced by images; logits of its end are ready.

        Args:
            text: holds `marker` once for each picture.
            pictures: in the order of the markers.
            add_special: put BOS (and EOS) where the vocabulary asks for them.
            parse_special: read `<|...|>` and their like as control tokens.

        Returns:
            An id for each cell of the cache, a negative one for what was seen.

        Raises:
            UsageError: they are more than the context holds, or an image cannot be taken by this projector.
            ModelRuntimeError: llama.cpp fails.
        """
        with self._chunks(text, pictures, special=parse_special, add_special=add_special) as chunks:
            ids = [token for chunk in chunks for token in self._ids(chunk)]
            if min(ids, default=0) < _SEEN:
                raise UsageError(
                    f"projector '{self.path}': the model's vocabulary lacks the tokens that stand around images: it was"
                    " made for another model"
                )
            if len(ids) > self.model.n_ctx:
                raise UsageError(
                    f"prompt has {len(ids)} tokens, {ids.count(_SEEN)} of them of images; the context holds"
                    f" {self.model.n_ctx}"
                )
            self.model.clear()
            position = 0
            for number, chunk in enumerate(chunks, 1):
                position = self._evaluate_one(chunk, position, is_last=number == len(chunks))
            self.model.adopt(ids)
            return ids

    def _evaluate_one(self, chunk: Any, position: int, *, is_last: bool) -> int:
        """Evaluate a piece of text or an image at `position`; gives the position behind it."""
        behind = ctypes.c_int32(position)
        batch = min(self.model.options.n_batch, self.model.options.n_ubatch)  # an image is never cut by llama.cpp
        place = (self._context, self.model.context, chunk)
        if self._kind(chunk) == _TEXT:
            with runtime_log().recording() as log:
                status = self._mtmd.mtmd_helper_eval_chunk_single(
                    *place, position, 0, batch, is_last, ctypes.byref(behind)
                )
        else:
            self._check_fits(chunk, batch)
            rows, nobody = np.ascontiguousarray(self._encoded(chunk)), self._mtmd.mtmd_helper_post_decode_callback()
            with runtime_log().recording() as log:
                status = self._mtmd.mtmd_helper_decode_image_chunk(
                    *place, rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), position, 0, batch,
                    ctypes.byref(behind), nobody, None,
                )  # fmt: skip
        if status:
            self.model.clear()
            reason = log.last_errors() or "no reason given"
            raise ModelRuntimeError(f"{self.path}: llama.cpp failed to evaluate an image or the text at it: {reason}")
        return behind.value

    def _check_fits(self, chunk: Any, batch: int) -> None:
        """Where every token of an image attends to all others, they must be evaluated together."""
        tokens = int(self._mtmd.mtmd_input_chunk_get_n_tokens(chunk))
        is_image = self._kind(chunk) != _TEXT
        if is_image and tokens > batch and self._mtmd.mtmd_decode_use_non_causal(self._context, chunk):
            raise UsageError(f"image: it has {tokens} tokens, which this model evaluates together: expected {batch}")

    def _encoded(self, chunk: Any) -> NDArray[np.float32]:
        with runtime_log().recording() as log:
            status = self._mtmd.mtmd_encode_chunk(self._context, chunk)
        if status:
            raise ModelRuntimeError(f"{self.path}: llama.cpp cannot encode the image: {log.last_errors()}")
        tokens = int(self._mtmd.mtmd_input_chunk_get_n_tokens(chunk))
        rows = np.ctypeslib.as_array(self._mtmd.mtmd_get_output_embd(self._context), (tokens, self.model.n_embd_read))
        return self._mended(rows.astype(np.float32, copy=True))  # mtmd overwrites its buffer in the next call

    def _mended(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows that are no numbers as Pixtral's token between rows of patches, which they stand for.

        `clip_graph_pixtral::build` clears that token's place by multiplying memory that nobody has written by zero:
        what happens to be NaN or infinite there stays NaN.

        Raises:
            ModelRuntimeError: anything else is no number.
        """
        broken = ~np.isfinite(rows).all(axis=1)
        if not broken.any():
            return rows
        token = row_break(self.path)
        if token is None or len(token) != rows.shape[1]:
            raise ModelRuntimeError(f"{self.path}: llama.cpp gives NaN for {int(broken.sum())} of {len(rows)} tokens")
        rows[broken] = token
        return rows

    def _kind(self, chunk: Any) -> int:
        return int(self._mtmd.mtmd_input_chunk_get_type(chunk))

    def _ids(self, chunk: Any) -> list[int]:
        """Token ids of a piece of text; of an image a placeholder for each embedding."""
        if self._kind(chunk) != _TEXT:
            return [_SEEN] * int(self._mtmd.mtmd_input_chunk_get_n_tokens(chunk))
        count = ctypes.c_size_t()
        tokens = self._mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
        return [int(tokens[i]) if tokens[i] >= 0 else _NO_TOKEN for i in range(count.value)]

    @contextmanager
    def _chunks(
        self, text: str, pictures: Sequence[Picture], *, special: bool, add_special: bool = False
    ) -> Iterator[list[Any]]:
        """The pieces of a prompt, text and images in turn, while the block lasts."""
        if text.count(self.marker) != len(pictures):
            raise UsageError(f"images: expected {len(pictures)} places in the prompt, got {text.count(self.marker)}")
        m, raw = self._mtmd, text.encode()
        chunks = m.mtmd_input_chunks_init()
        bitmaps = [self._bitmap(picture) for picture in pictures]
        try:
            wanted = m.mtmd_input_text(raw, len(raw), add_special, special)
            array = (m.mtmd_bitmap_p_ctypes * len(bitmaps))(*bitmaps)
            with runtime_log().recording() as log:
                status = m.mtmd_tokenize(self._context, chunks, ctypes.byref(wanted), array, len(bitmaps))
            if status:
                raise UsageError(f"images: the projector cannot take them: {log.last_errors() or 'no reason given'}")
            yield [m.mtmd_input_chunks_get(chunks, i) for i in range(int(m.mtmd_input_chunks_size(chunks)))]
        finally:
            for bitmap in bitmaps:
                m.mtmd_bitmap_free(bitmap)
            m.mtmd_input_chunks_free(chunks)

    def _bitmap(self, picture: Picture) -> Any:
        """A copy of a picture's pixels as mtmd has it; the caller frees it."""
        if picture.pixels is not None:
            height, width, _channels = picture.pixels.shape
            data = np.ascontiguousarray(picture.pixels).ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
            return self._mtmd.mtmd_bitmap_init(width, height, data)
        options = self._mtmd.mtmd_helper_init_opt_default()
        buffer = (ctypes.c_uint8 * len(picture.encoded)).from_buffer_copy(picture.encoded)
        made = self._mtmd.mtmd_helper_bitmap_init_from_buf_wrapper(
            self._context, buffer, len(picture.encoded), False, options
        )
        if not made.bitmap:
            raise UsageError(f"image '{picture.label}': it is damaged: its pixels cannot be decoded")
        return made.bitmap


def row_break(projector: Path) -> NDArray[np.float32] | None:
    """What stands between rows of an image's patches, float32 [width]; None where a projector has no such token."""
    header = read_header(projector)
    for tensor in header.tensors:
        if tensor.name == "v.token_embd.img_break" and tensor.type is GGMLType.F32:
            with projector.open("rb") as stream:
                stream.seek(header.data_start + tensor.offset)
                return np.frombuffer(stream.read(tensor.nbytes), np.float32)
    return None


class PicturePrompt(Sequence[int]):
    """A prompt with images in it: ids as they stand in the KV cache once it has been evaluated, none before.

    Args:
        eyes: of the model that will answer.
        text: holds the eyes' marker once for each picture.
        pictures: in the order of the markers.
        add_special: as `Eyes.evaluate`.
        parse_special: likewise.
    """

    def __init__(
        self,
        eyes: Eyes,
        text: str,
        pictures: Sequence[Picture],
        *,
        add_special: bool = True,
        parse_special: bool = False,
    ) -> None:
        self._eyes, self._text, self._pictures = eyes, text, pictures
        self._add_special, self._parse_special = add_special, parse_special
        self._ids: list[int] = []

    def evaluate(self) -> None:
        """Bring the model's KV cache to this prompt, its last logits ready to sample; raises as `Eyes.evaluate`."""
        self._ids = self._eyes.evaluate(
            self._text, self._pictures, add_special=self._add_special, parse_special=self._parse_special
        )

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        """A token's id; a negative one for what was seen."""
        return self._ids[index]


def _log_here(mtmd: Any) -> None:
    """Let mtmd, which has a log of its own beside llama.cpp's, log where that logs."""
    mtmd.mtmd_helper_log_set(runtime_log().callback, ctypes.c_void_p(0))
