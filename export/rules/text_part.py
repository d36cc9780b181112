"""How multimodal checkpoints name the part that reads and writes text, and what else is in them.

What that part is, is its family's data; of what sees and hears nothing is read here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepack.export.rules.family import Family

_RENAMES = (
    ("model.", "model.language_model."),  # as transformers 5 writes them
    ("model.", "language_model.model."),  # as they were published before
    ("", "language_model."),
    ("model.", "model.text_model."),  # Idefics 3 and SmolVLM
)
_OTHER_MODALITIES = r"^(model\.)?(vision_tower|multi_modal_projector|visual|vision_model|connector)\."


def text_part(family: Family, *classes: str, **changes: object) -> Family:
    """The family of wrappers whose text part is of `family`.

    Args:
        family: of the text part alone.
        classes: the wrappers' classes.
        changes: other attributes of `Family` that differ.
    """
    wrapped = replace(
        family,
        classes=classes,
        nested=True,
        renames=_RENAMES,
        unused=(*family.unused, _OTHER_MODALITIES),
    )
    return replace(wrapped, **changes)  # type: ignore[arg-type]
