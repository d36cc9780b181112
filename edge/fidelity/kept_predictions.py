"""A reference's whole predictions on disk, one file a chunk: run once, held against any number of candidates later.

A chunk's file appears whole or not at all, so an interrupted run goes on where it was. What is measured against them
is `validate`'s; a certificate's few likeliest tokens are `stored_reference`'s.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.edge.fidelity.agreement import check_logits
from edgepack.edge.fidelity.predictions import score_ahead
from edgepack.edge.fidelity.scorers.scorer import Chunking
from edgepack.errors import IntegrityError, UsageError
from edgepack.files.output import atomic_output
from edgepack.files.source import parse_json, read_small
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.edge.fidelity.scorers.scorer import Chunk, Scorer
    from edgepack.progress import Progress

# A chunk's file: this header, top ids int32 [rows], codes uint16 [rows, vocabulary], SHA-256 of all before.
_HEADER = struct.Struct("<8sII")
_MAGIC = b"EDGEPRD1"
_DIGEST_BYTES = 32
_LATTICE = 1 / 2048  # nats between two codes: rounding adds 2e-8 nats of divergence to a token on average
_IMPOSSIBLE = 65535  # code of a token that cannot come
_ABOUT = "about.json"
_MOST_VOCABULARY, _MOST_ROWS = 1 << 24, 1 << 20
_MOST_ABOUT = 64 << 20


def encode_logits(logits: NDArray[np.float32]) -> bytes:
    """Logits [rows, vocabulary] as a chunk's file: each row's fall from its likeliest token, in steps of 1/2048 nats.

    What falls 32 nats or more is held at 32; −inf stays −inf. The likeliest token is kept by its id, so that rounding
    makes no tie of it.
    """
    rows, vocabulary = logits.shape
    top = logits.argmax(axis=1).astype("<i4")
    fall = logits.max(axis=1, keepdims=True) - logits
    codes = np.full(logits.shape, _IMPOSSIBLE, "<u2")
    finite = np.isfinite(fall)
    codes[finite] = np.minimum(np.rint(fall[finite] / np.float32(_LATTICE)), _IMPOSSIBLE - 1).astype("<u2")
    body: bytes = _HEADER.pack(_MAGIC, rows, vocabulary) + top.tobytes() + codes.tobytes()
    return body + hashlib.sha256(body).digest()


def decode_logits(content: bytes, where: str) -> NDArray[np.float32]:
    """The logits [rows, vocabulary] of a chunk's file, but for a constant a row.

    Raises:
        IntegrityError: it is damaged.
    """
    body = content[:-_DIGEST_BYTES]
    if len(content) < _HEADER.size + _DIGEST_BYTES or hashlib.sha256(body).digest() != content[-_DIGEST_BYTES:]:
        raise IntegrityError(f"{where}: damaged, its digest differs: remove it, and it is computed again")
    magic, rows, vocabulary = _HEADER.unpack_from(body)
    fits = 0 < rows <= _MOST_ROWS and 0 < vocabulary <= _MOST_VOCABULARY
    if magic != _MAGIC or not fits or len(body) != _HEADER.size + rows * (4 + 2 * vocabulary):
        raise IntegrityError(f"{where}: expected kept predictions of this version, got another file")
    top = np.frombuffer(body, "<i4", rows, _HEADER.size)
    codes = np.frombuffer(body, "<u2", rows * vocabulary, _HEADER.size + 4 * rows).reshape(rows, vocabulary)
    logits = codes.astype(np.float32)
    logits *= -np.float32(_LATTICE)
    logits[codes == _IMPOSSIBLE] = -np.inf
    logits[np.arange(rows), np.clip(top, 0, vocabulary - 1)] = np.float32(_LATTICE / 8)
    return logits


def kept_bytes(scored: int, vocabulary: int) -> int:
    """Bytes on disk of `scored` predictions."""
    return scored * (4 + 2 * vocabulary)


@dataclass(frozen=True)
class KeptTokenizer:
    """The reference's tokenizer, as far as one text is concerned.

    Attributes:
        text_sha256: of the text's UTF-8 bytes, hexadecimal.
        tokens: int32 [n], of that text.
        first: the token that begins every text, or None.
    """

    text_sha256: str
    tokens: NDArray[np.int32]
    first: int | None

    def tokenize(self, text: str) -> NDArray[np.int32]:
        """Its tokens; raises UsageError for another text."""
        if hashlib.sha256(text.encode()).hexdigest() != self.text_sha256:
            raise UsageError("kept predictions: expected the text that they are of, got another one")
        return self.tokens

    def piece(self, token: int) -> str:
        """The token's number: spellings are not kept."""
        return f"<{token}>"

    @property
    def bos(self) -> int | None:
        """The token that begins every text, or None."""
        return self.first


class KeptPredictions:
    """A reference's predictions of one text, from a folder that `keep` filled: a `Scorer`.

    Args:
        folder: of these predictions alone.

    Raises:
        IntegrityError: what lies there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        about = _read_about(folder)
        self._about = about
        tokens = np.array(about["tokens"], dtype=np.int32)
        self.tokenizer = KeptTokenizer(about["text_sha256"], tokens, about["bos"])
        self.chunking = Chunking(about["ctx"], about["stride"], about["max_chunks"])

    @property
    def label(self) -> str:
        """The reference's."""
        return str(self._about["label"])

    @property
    def vocabulary(self) -> int:
        """Width of a row of logits."""
        return int(self._about["vocabulary"])

    @property
    def context_limit(self) -> int:
        """The chunks' own length."""
        return self.chunking.ctx

    @cached_property
    def scored(self) -> int:
        """Predictions in all."""
        return self.chunking.scored(len(self.tokenizer.tokens))

    def score(self, chunk: Chunk) -> NDArray[np.float32]:
        """Logits [chunk.scored, vocabulary], but for a constant a row; raises IntegrityError for a damaged file."""
        path = _chunk_path(self.folder, chunk.index)
        most = kept_bytes(chunk.scored, self.vocabulary) + _HEADER.size + _DIGEST_BYTES
        logits = decode_logits(read_small(path, IntegrityError, most), str(path))
        if logits.shape != (chunk.scored, self.vocabulary):
            raise IntegrityError(f"{path}: expected {chunk.scored} predictions of {self.vocabulary} tokens")
        return logits

    def close(self) -> None:
        """Nothing is held."""


def has_kept(folder: Path) -> bool:
    """Whether every chunk is there."""
    return (folder / _ABOUT).is_file() and not _missing(KeptPredictions(folder))


def keep(
    folder: Path,
    text: str,
    choose: Callable[[Scorer], Chunking],
    open_reference: Callable[[], Scorer],
    progress: Progress = silent,
) -> KeptPredictions:
    """Run the reference over a text, but for the chunks that are there, and keep what it predicts.

    Args:
        folder: exists; of this text's predictions alone.
        text: what is scored.
        choose: the chunking for the reference; asked once.
        open_reference: opens it; not called when everything is there.
        progress: told of scored tokens.

    Raises:
        UsageError: the text is too short.
        NumericError: as `validate`.
        ResourceError: the disk is full.
    """
    if has_kept(folder):
        return KeptPredictions(folder)
    reference = open_reference()
    if not (folder / _ABOUT).is_file():
        _write_about(folder, text, choose(reference), reference)
    kept = KeptPredictions(folder)
    tokens, missing = kept.tokenizer.tokenize(text), set(_missing(kept))
    wanted = (each for each in kept.chunking.chunks(tokens, kept.tokenizer.bos) if each.index in missing)
    with progress("running the original", kept.scored, " tokens") as advance:
        for chunk, logits in score_ahead(reference, wanted):
            assert isinstance(logits, np.ndarray), "a stored reference is run by no one"
            check_logits(logits, "reference", chunk.start + chunk.first)
            with atomic_output(_chunk_path(folder, chunk.index)) as stream:
                stream.write(encode_logits(logits))
            advance(chunk.scored)
    return kept


def _missing(kept: KeptPredictions) -> list[int]:
    count = kept.chunking.count(len(kept.tokenizer.tokens))
    return [index for index in range(count) if not _chunk_path(kept.folder, index).is_file()]


def _chunk_path(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.predictions"


def _write_about(folder: Path, text: str, chunking: Chunking, reference: Scorer) -> None:
    tokens = reference.tokenizer.tokenize(text)
    chunking.count(len(tokens))
    about = {
        "label": reference.label, "vocabulary": reference.vocabulary, "bos": reference.tokenizer.bos,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(), "ctx": chunking.ctx, "stride": chunking.stride,
        "max_chunks": chunking.max_chunks, "tokens": tokens.tolist(),
    }  # fmt: skip
    with atomic_output(folder / _ABOUT) as stream:
        stream.write(json.dumps(about).encode())


_KNOWN: dict[str, type | tuple[type, ...]] = {
    "label": str, "vocabulary": int, "bos": (int, type(None)), "text_sha256": str, "ctx": int,
    "stride": (int, type(None)), "max_chunks": (int, type(None)), "tokens": list,
}  # fmt: skip


def _read_about(folder: Path) -> dict[str, Any]:
    where = folder / _ABOUT
    about: Any = parse_json(read_small(where, IntegrityError, _MOST_ABOUT), where, IntegrityError)
    for name, kind in _KNOWN.items():
        if not isinstance(about, dict) or not isinstance(about.get(name, ...), kind):
            raise IntegrityError(f"{where}: not what was kept of a reference: '{name}'")
    if not all(isinstance(token, int) and 0 <= token < _MOST_VOCABULARY for token in about["tokens"]):
        raise IntegrityError(f"{where}: not what was kept of a reference: 'tokens'")
    return dict(about)
