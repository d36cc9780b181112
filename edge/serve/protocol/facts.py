"""What requests are held against: the served model's numbers and abilities."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.edge.confidence.record import Fitted, Form
    from edgepack.edge.serve.engine.settings import Task


@dataclass(frozen=True)
class ServedFacts:
    """What is served.

    Attributes:
        name: of the model, without folders.
        created: when the file was made, in seconds since 1970.
        tasks: what the model is for: text and embedding, embedding alone, or rerank.
        n_ctx: tokens that one request may use, prompt and answer together.
        n_ctx_train: tokens that the model was trained with.
        n_vocab: tokens that it knows.
        n_embd: width of its embeddings.
        slots: requests that are answered at the same time.
        vision, audio: what it takes besides text.
        has_template: it can chat.
        takes_tools: its chat template shows tools to it.
        sentencepiece: its vocabulary is one of SentencePiece, whose tokens llguidance misreads.
        confidence: form of question (`text`, `chat`) → how sure its answers are; empty where nobody has measured it.
    """

    name: str
    created: int
    tasks: tuple[Task, ...]
    n_ctx: int
    n_ctx_train: int
    n_vocab: int
    n_embd: int
    slots: int
    vision: bool = False
    audio: bool = False
    has_template: bool = True
    takes_tools: bool = False
    sentencepiece: bool = False
    confidence: Mapping[Form, Fitted] = field(default_factory=dict)
