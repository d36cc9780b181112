"""`edgepack.validate_embeddings`: an embedder's file held against its original, by angles and by what they find."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.api.loading import load
from edgepack.api.trust import policy_for
from edgepack.api.values import FilePath, JsonObject, optional_path
from edgepack.edge.fidelity.embeddings import EmbeddingAgreement, compare_embeddings
from edgepack.edge.fidelity.tasks.tasks import ChoiceItem, own_tasks, read_items
from edgepack.errors import DependencyError, UsageError
from edgepack.files.remote import is_url
from edgepack.gguf import keys
from edgepack.progress import silent
from edgepack.text_file import read_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgepack.api.model import Model
    from edgepack.api.trust import Trusted
    from edgepack.edge.fidelity.gates import GateResult
    from edgepack.gguf.reader import GGUFHeader
    from edgepack.progress import Progress

_PIECE, _MOST = 400, 200  # characters of a text, texts
_POOLING_RANK = 4


@dataclass(frozen=True)
class EmbeddingValidation:
    """An embedder's file held against its original.

    Attributes:
        candidate: the file.
        reference: the original's name.
        origin: of the texts.
        agreement: what was measured.
        gates: how they went.
    """

    candidate: Path
    reference: str
    origin: str
    agreement: EmbeddingAgreement
    gates: tuple[GateResult, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate is cleared."""
        return all(gate.passed for gate in self.gates)

    def json(self) -> JsonObject:
        """The object that `edgepack validate --json` prints for an embedder."""
        gates = [{"name": gate.name, "passed": gate.passed, "detail": gate.detail} for gate in self.gates]
        return {
            "candidate": self.candidate.name, "reference": self.reference, "text": {"origin": self.origin},
            "passed": self.passed, "gates": gates, **self.agreement.json(),
        }  # fmt: skip


def gives_embeddings(file: FilePath, trusted: Trusted = ()) -> bool:
    """Whether a file's model is an encoder or says how its tokens are pooled, and ranks nothing; installs nothing.

    Raises:
        GGUFError, ArchiveError, CodecError: the file is not sound.
        CheckFailedError: nobody trusted signed it.
    """
    from edgepack.edge.install.model_file import peek

    header = peek(Path(file), policy_for(trusted))
    pooling = header.get(f"{header.get(keys.ARCHITECTURE)}.pooling_type")
    causal = header.get(f"{header.get(keys.ARCHITECTURE)}.attention.causal")
    return pooling != _POOLING_RANK and (pooling is not None or causal is False)


def validate_embeddings(
    candidate: FilePath,
    reference: FilePath,
    *,
    text: FilePath | None = None,
    min_agreement: float | None = None,
    threads: int | None = None,
    trusted: Trusted = (),
    progress: Progress = silent,
) -> EmbeddingValidation:
    """Embed the same texts with a file and its original; compare angles, and which texts each finds nearest.

    Args:
        candidate: a GGUF or an `.edgepack` of an embedder.
        reference: the original: a Hugging Face folder (torch, float32) or a GGUF.
        text: a UTF-8 text whose paragraphs are embedded; by default sentences that ship with edgepack.
        min_agreement: a gate: least share of texts whose nearest is the same, by the lower end of the 95 % interval.
        threads: cores.
        trusted: files of public keys, one of which must have signed (by default: of the trust store), or a policy.
        progress: told of texts.

    Raises:
        UsageError: fewer than three texts, or a reference at a URL.
        DependencyError: the original runs in torch, which is not installed.
        EdgepackError: whatever opening either of them finds wrong.
    """
    if is_url(reference):
        raise UsageError(f"'{candidate}' gives embeddings: expected --reference as a folder, got the URL '{reference}'")
    path, original = optional_path(text), Path(reference)
    texts, origin = (own_texts(), "sentences that ship with edgepack") if path is None else (_pieces(path), path.name)
    trust = policy_for(trusted)
    with load(candidate, embeddings=True, threads=threads, device="cpu", trusted=trust) as model:
        found = _embedded(model, texts, progress)
        header = model.source.header
    if original.is_dir():
        before = _default_prompt(header)
        expected = _torch(original, header, [before + each for each in texts], threads or 1)
    else:
        with load(original, embeddings=True, threads=threads, device="cpu", trusted=trust.of_originals()) as model:
            expected = _embedded(model, texts, progress)
    agreement = compare_embeddings(expected, found)
    return EmbeddingValidation(Path(candidate), original.name, origin, agreement, agreement.gate(min_agreement))


def own_texts() -> list[str]:
    """Sentences out of the public domain: the right endings of the shipped task."""
    items = read_items(own_tasks()["hellaswag"])
    return list(dict.fromkeys(item.endings[item.label] for item in items if isinstance(item, ChoiceItem)))


def _pieces(path: Path) -> list[str]:
    """The text's paragraphs, each cut to a length that every embedder takes."""
    paragraphs = (" ".join(part.split())[:_PIECE] for part in read_text(path).split("\n\n"))
    return list(dict.fromkeys(part for part in paragraphs if part))[:_MOST]


def _embedded(model: Model, texts: Sequence[str], progress: Progress) -> NDArray[np.float32]:
    with progress("embedding", len(texts), " texts") as advance:
        rows = []
        for text in texts:
            rows.append(model.embed(text)[0])
            advance(1)
    return np.stack(rows)


def _default_prompt(header: GGUFHeader) -> str:
    name = header.get(keys.EMBEDDING_DEFAULT_PROMPT)
    return str(header.get(f"{keys.EMBEDDING_PROMPT}{name}", "")) if isinstance(name, str) else ""


def _torch(folder: Path, header: GGUFHeader, texts: Sequence[str], threads: int) -> NDArray[np.float32]:
    from edgepack.export.mapped_model import open_model

    try:
        from edgepack.edge.fidelity.scorers.torch_embedder import TorchEmbedder
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"the reference runs in torch: '{error.name}' is not installed, use pip install 'edgepack[compress]'"
        ) from None
    mapped = open_model(folder)
    named = sorted(name for name in mapped.tensors if name.startswith("dense_") and name.endswith(".weight"))
    dense = [mapped.tensors[name].read(0, mapped.tensors[name].shape[0]) for name in named]
    pooling = header.get(f"{header.get(keys.ARCHITECTURE)}.pooling_type", 0)
    return TorchEmbedder(folder, int(pooling), dense, threads).embed(texts)
