"""Gemma 4 12B, text part: as Gemma 4, with no embeddings by layer. It sees and hears without towers, by embedders.

Those embedders are left out.
"""

from __future__ import annotations

from dataclasses import replace

from edgepack.export.architectures.gemma4 import MULTIMODAL
from edgepack.export.architectures.gemma4 import TEXT as WITH_LAYERS_OF_EMBEDDINGS
from edgepack.export.rules.family import BUFFERS

TEXT = replace(
    WITH_LAYERS_OF_EMBEDDINGS,
    classes=("Gemma4UnifiedForCausalLM",),
    defaults={
        **WITH_LAYERS_OF_EMBEDDINGS.defaults,
        "hidden_size_per_layer_input": 0,
        "max_position_embeddings": 262144,
        "sliding_window": 1024,
    },
)
WHOLE = replace(
    TEXT,
    classes=("Gemma4UnifiedForConditionalGeneration",),
    nested=True,
    renames=MULTIMODAL.renames,
    unused=(*BUFFERS, r"^model\.(vision_embedder|embed_vision|embed_audio)\."),
)
FAMILIES = (TEXT, WHOLE)
