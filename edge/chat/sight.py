"""Images in a prompt: a place for each in front of a text, and the prompt that a model with eyes evaluates.

What an image becomes is `edge.llama.image`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.edge.llama.image import Eyes, PicturePrompt
    from edgepack.edge.llama.image_file import Picture


@dataclass(frozen=True)
class Sight:
    """Images and the eyes that look at them.

    Attributes:
        eyes: of the model that answers.
        pictures: in order.
    """

    eyes: Eyes
    pictures: Sequence[Picture]

    @property
    def markers(self) -> str:
        """What stands for the images in a text, a line each, as llama.cpp's own tools put them."""
        return "".join(f"{self.eyes.marker}\n" for _picture in self.pictures)

    def prompt(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> PicturePrompt:
        """A text with the markers in it, as a prompt; arguments as `Eyes.evaluate`."""
        from edgepack.edge.llama.image import PicturePrompt

        return PicturePrompt(self.eyes, text, self.pictures, add_special=add_special, parse_special=parse_special)
