"""What the engine's process is told: plain values that go through JSON. Choosing them is left to `opening`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

Task = Literal["text", "embedding", "rerank"]


@dataclass(frozen=True)
class EngineSettings:
    """How one engine process opens the model.

    Attributes:
        model: path of the GGUF.
        name: what answers call the model.
        task: what it is opened for; a context that generates text gives no embeddings and ranks nothing.
        n_ctx: tokens of context of one slot.
        slots: requests that are answered at the same time.
        n_batch: prompt tokens that are evaluated at once: between two batches a request can be cancelled.
        threads: for generation and prompts; 0 leaves it to llama.cpp.
        poll: how busily threads wait for each other, 0 (not at all) to 100.
        kv_type_k, kv_type_v: ggml's numbers of the types of K and V.
        n_gpu_layers: layers on the GPU; -1 is all.
        flash_attention: enum llama_flash_attn_type: -1 is auto, 0 off, 1 on.
        pooling: enum llama_pooling_type, or -1 for the model's own.
        adapters: path and scale of each LoRA.
        chat_template: Jinja text, or the name of one of llama.cpp's (then `jinja` is false); empty for the model's.
        jinja: whether the template is Jinja.
        mmproj: path of the projector that gives the model eyes, or empty.
        context_extension: by how much positions are stretched beyond the trained context; 1.0 is not at all.
    """

    model: str
    name: str
    task: Task = "text"
    n_ctx: int = 512
    slots: int = 1
    n_batch: int = 512
    threads: int = 0
    poll: int = 0
    kv_type_k: int = 1
    kv_type_v: int = 1
    n_gpu_layers: int = 0
    flash_attention: int = -1
    pooling: int = -1
    adapters: tuple[tuple[str, float], ...] = ()
    chat_template: str = ""
    jinja: bool = True
    mmproj: str = ""
    context_extension: float = 1.0


def to_json(settings: EngineSettings, **more: object) -> str:
    """One line that `from_json` reads, with `more` values beside the settings."""
    return json.dumps({**asdict(settings), **more})


def from_json(line: str) -> tuple[EngineSettings, dict[str, object]]:
    """The settings in a line, and what else it says."""
    values = json.loads(line)
    known = {name: values.pop(name) for name in EngineSettings.__dataclass_fields__}
    known["adapters"] = tuple((str(path), float(scale)) for path, scale in known["adapters"])
    return EngineSettings(**known), values
