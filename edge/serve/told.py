"""What the server tells about the model, in OpenAI's and in llama.cpp's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.edge.serve.protocol.confidence import confidence_facts

if TYPE_CHECKING:
    from edgepack.edge.serve.protocol.facts import ServedFacts


def model_object(facts: ServedFacts) -> dict[str, Any]:
    """`/v1/models/NAME`."""
    return {
        "id": facts.name,
        "object": "model",
        "created": facts.created,
        "owned_by": "edgepack",
        "meta": {
            "n_ctx": facts.n_ctx,
            "n_ctx_train": facts.n_ctx_train,
            "n_vocab": facts.n_vocab,
            "n_embd": facts.n_embd,
            "tasks": list(facts.tasks),
            "vision": facts.vision,
            "audio": facts.audio,
            "tools": facts.takes_tools,
            "chat": facts.has_template,
            "confidence": confidence_facts(facts.confidence),
        },
    }


def models_object(facts: ServedFacts) -> dict[str, Any]:
    """`/v1/models`."""
    return {"object": "list", "data": [model_object(facts)]}


def props_object(facts: ServedFacts) -> dict[str, Any]:
    """`/props`: the keys of llama.cpp's that clients read; no path, no template."""
    return {
        "model_alias": facts.name,
        "total_slots": facts.slots,
        "default_generation_settings": {"n_ctx": facts.n_ctx},
        "modalities": {"vision": facts.vision, "audio": facts.audio},
        "chat_template_caps": {"supports_tools": facts.takes_tools},
    }
