"""What a publisher stores of two models' predictions, in bytes: a reference that needs neither model to be there.

The only code that knows these bytes; what they are compared with is `certificate`'s and `scorer_stored`'s business.

Layout, little-endian: magic `EDGEREF1`, u32 bytes of the JSON header, u64 bytes of the compressed body, header,
body (one zstd frame), SHA-256 of everything before it. The body holds arrays one after the other, each split into
byte planes: chunk tokens; ids, first log-probabilities, their falls along the row, tails, targets of the reference;
first choice (XOR the reference's), target and divergence of the publisher's candidate. Log-probabilities are
multiples of −1/2048 nat.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import zstandard

from edgepack.edge.fidelity.agreement import TruncatedPredictions
from edgepack.errors import ArchiveError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

MAGIC = b"EDGEREF1"
HEAD = struct.Struct("<8sIQ")
DIGEST_BYTES = 32
STEP = 1 / 2048  # nat; a probability is off by at most 0.025 %
_CEILING = 65535  # stands for anything at or below exp(−32)
_MAX_HEADER = 1 << 20
_MAX_BODY = 1 << 28
_FREE_BODY, _MOST_EXPANSION = 4 << 20, 64  # arrays may be so large without cost, and so many times what is stored
MAX_BYTES = _MAX_BODY + _MAX_HEADER
_KEYS = ("chunks", "ctx", "first", "k", "vocabulary")


@dataclass(frozen=True)
class StoredReference:
    """Predictions of a reference, and of the candidate its publisher made, on the same chunks.

    Attributes:
        tokens: int32 [chunks, ctx], the text's own.
        bos: what the models read in the place of each chunk's first token, or None.
        first: first scored position of a chunk, included; the last is ctx − 2.
        reference: n = chunks × (ctx − 1 − first) positions.
        candidate_top: int32 [n], the candidate's first choices on the publisher's machine.
        candidate_target: float64 [n], its log-probabilities of the text's own tokens.
        candidate_divergence: float64 [n], its divergence from the truncated reference, in nats.
        facts: whatever else the publisher states, as JSON has it.
    """

    tokens: NDArray[np.int32]
    bos: int | None
    first: int
    reference: TruncatedPredictions
    candidate_top: NDArray[np.int32]
    candidate_target: NDArray[np.float64]
    candidate_divergence: NDArray[np.float64]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scored_per_chunk(self) -> int:
        """Scored positions of each chunk."""
        return int(self.tokens.shape[1]) - 1 - self.first

    def read(self, chunk: int) -> NDArray[np.int32]:
        """int32 [ctx], what the models read of chunk number `chunk`."""
        tokens: NDArray[np.int32] = self.tokens[chunk].copy()
        if self.bos is not None:
            tokens[0] = self.bos
        return tokens

    def rows(self, chunk: int) -> slice:
        """The rows of all arrays that belong to chunk number `chunk`."""
        return slice(chunk * self.scored_per_chunk, (chunk + 1) * self.scored_per_chunk)


def encode(stored: StoredReference) -> bytes:
    """The bytes of `stored`."""
    reference = stored.reference
    wide = np.uint32 if reference.vocabulary > 1 << 16 else np.uint16
    steps = _to_steps(reference.log_probabilities)
    with np.errstate(divide="ignore"):
        tails = _to_steps(np.log(reference.tail))
    arrays: list[NDArray[Any]] = [
        stored.tokens.astype(wide),
        reference.ids.astype(wide),
        steps[:, 0],
        np.diff(steps.astype(np.int32), axis=1).astype(np.uint16),
        tails,
        _to_steps(reference.target),
        (stored.candidate_top ^ reference.ids[:, 0]).astype(wide),
        _to_steps(stored.candidate_target),
        stored.candidate_divergence.astype(np.float16),
    ]
    planes = [np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, array.itemsize).T for array in arrays]
    body = zstandard.ZstdCompressor(level=19).compress(b"".join(plane.tobytes() for plane in planes))
    header = {
        **stored.facts,
        "bos": stored.bos,
        "chunks": stored.tokens.shape[0],
        "ctx": stored.tokens.shape[1],
        "first": stored.first,
        "k": reference.ids.shape[1],
        "vocabulary": reference.vocabulary,
    }
    raw = json.dumps(header, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
    content = HEAD.pack(MAGIC, len(raw), len(body)) + raw + body
    return content + hashlib.sha256(content).digest()


def decode(raw: bytes, label: str) -> StoredReference:
    """Read what `encode` wrote; nothing in it is trusted before it is checked.

    Raises:
        ArchiveError: not such bytes, truncated, or of senseless shape.
        IntegrityError: the digest differs.
    """
    if len(raw) < HEAD.size + DIGEST_BYTES or raw[: len(MAGIC)] != MAGIC:
        raise ArchiveError(f"{label}: not a stored reference")
    _magic, header_bytes, body_bytes = HEAD.unpack_from(raw)
    expected = HEAD.size + header_bytes + body_bytes + DIGEST_BYTES
    if expected != len(raw) or header_bytes > _MAX_HEADER:
        raise ArchiveError(f"{label}: expected {expected} bytes, got {len(raw)}")
    if hashlib.sha256(raw[:-DIGEST_BYTES]).digest() != raw[-DIGEST_BYTES:]:
        raise IntegrityError(f"{label}: the bytes differ from their digest")
    facts = _header(raw[HEAD.size : HEAD.size + header_bytes], label)
    return _decode_body(raw[HEAD.size + header_bytes : -DIGEST_BYTES], facts, label)


def _header(raw: bytes, label: str) -> dict[str, Any]:
    try:
        facts = json.loads(raw)
    except ValueError as error:
        raise ArchiveError(f"{label}: the header is no JSON: {error}") from error
    if not isinstance(facts, dict):
        raise ArchiveError(f"{label}: the header is no JSON object")
    for key in _KEYS:
        if type(facts.get(key)) is not int or not 0 <= facts[key] < 1 << 31:
            raise ArchiveError(f"{label}: '{key}': expected a count, got {facts.get(key)!r}")
    bos = facts.get("bos")
    if bos is not None and not (type(bos) is int and 0 <= bos < facts["vocabulary"]):
        raise ArchiveError(f"{label}: 'bos': expected a token or null, got {bos!r}")
    facts["bos"] = bos
    fitting = 1 <= facts["k"] <= facts["vocabulary"] and facts["first"] + 1 < facts["ctx"] and facts["chunks"] >= 1
    if not fitting or facts["chunks"] * facts["ctx"] * (facts["k"] + 8) > _MAX_BODY:
        raise ArchiveError(f"{label}: senseless or too large shape {[facts[key] for key in _KEYS]}")
    return facts


def _decode_body(body: bytes, facts: dict[str, Any], label: str) -> StoredReference:
    chunks, ctx, first, k, vocabulary = (facts[key] for key in _KEYS)
    n = chunks * (ctx - 1 - first)
    wide = np.dtype(np.uint32 if vocabulary > 1 << 16 else np.uint16)
    narrow, half = np.dtype(np.uint16), np.dtype(np.float16)
    plan: list[tuple[int, np.dtype[Any]]] = [
        (chunks * ctx, wide), (n * k, wide), (n, narrow), (n * (k - 1), narrow), (n, narrow), (n, narrow),
        (n, wide), (n, narrow), (n, half),
    ]  # fmt: skip
    size = sum(count * dtype.itemsize for count, dtype in plan)
    if size > _FREE_BODY + _MOST_EXPANSION * len(body):
        raise ArchiveError(f"{label}: arrays of {size} bytes out of {len(body)} stored ones")
    try:
        content = zstandard.ZstdDecompressor().decompress(body, max_output_size=size)
    except zstandard.ZstdError as error:
        raise ArchiveError(f"{label}: {error}") from error
    if len(content) != size:
        raise ArchiveError(f"{label}: expected {size} bytes of arrays, got {len(content)}")
    arrays: list[NDArray[Any]] = []
    at = 0
    for count, dtype in plan:
        planes = np.frombuffer(content, np.uint8, count * dtype.itemsize, at).reshape(dtype.itemsize, count)
        arrays.append(np.ascontiguousarray(planes.T).view(dtype).reshape(-1))
        at += count * dtype.itemsize
    tokens, ids, tops, falls, tails, targets, choices, told, divergences = arrays
    ids = ids.reshape(n, k).astype(np.int32)
    candidate_top = choices.astype(np.int32) ^ ids[:, 0]
    for name, array in (("tokens", tokens), ("ids", ids), ("choices", candidate_top)):
        if array.size and not 0 <= int(array.min()) <= int(array.max()) < vocabulary:
            raise ArchiveError(f"{label}: {name} beyond the vocabulary of {vocabulary}")
    steps = np.cumsum(np.column_stack([tops.astype(np.int64), falls.reshape(n, k - 1)]), axis=1)
    reference = _normalised(ids, _from_steps(steps), _from_steps(tails), _from_steps(targets), vocabulary)
    return StoredReference(
        tokens.reshape(chunks, ctx).astype(np.int32), facts["bos"], first, reference, candidate_top, _from_steps(told),
        divergences.astype(np.float64), {key: value for key, value in facts.items() if key not in (*_KEYS, "bos")},
    )  # fmt: skip


def _normalised(
    ids: NDArray[np.int32],
    log_p: NDArray[np.float64],
    log_tail: NDArray[np.float64],
    target: NDArray[np.float64],
    vocabulary: int,
) -> TruncatedPredictions:
    """Probabilities that add up to 1 again after rounding, so that no divergence is negative."""
    tail = np.exp(log_tail)
    total = np.exp(log_p).sum(axis=1) + tail
    total[total == 0] = 1.0
    return TruncatedPredictions(ids, log_p - np.log(total)[:, None], tail / total, target, vocabulary)


def _to_steps(log_p: NDArray[np.float64]) -> NDArray[np.uint16]:
    return np.clip(np.rint(-log_p / STEP), 0, _CEILING).astype(np.uint16)


def _from_steps(steps: NDArray[Any]) -> NDArray[np.float64]:
    log_p: NDArray[np.float64] = np.where(steps >= _CEILING, -np.inf, -STEP * steps.astype(np.float64))
    return log_p
