"""Which codecs exist, and the one way from stored arrays to a decoder that may be trusted.

It imports a codec only when it is asked for. Nothing here encodes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from edgepack.errors import CodecError
from edgepack.quant.codecs.codec import check_components

if TYPE_CHECKING:
    from edgepack.quant.codecs.codec import Codec, Decoder, Encoded

# codec → (module under edgepack.quant.codecs, class)
CODECS: dict[str, tuple[str, str]] = {
    "seedlm": ("seedlm.codec", "SeedLM"),
    "nf4": ("nf4", "NF4"),
    "ternary": ("ternary", "Ternary"),
    "trajectory": ("trajectory", "Trajectory"),
    "bezier": ("bezier", "Bezier"),
    "vptq": ("vptq.codec", "VPTQ"),
}


def codec_class(name: str) -> type[Codec]:
    """The class of codec `name`; raises CodecError when there is none."""
    if name not in CODECS:
        raise CodecError(f"made by a newer edgepack: unknown codec '{name}', known are {', '.join(CODECS)}")
    module, attribute = CODECS[name]
    found: type[Codec] = getattr(importlib.import_module(f"edgepack.quant.codecs.{module}"), attribute)
    return found


def open_decoder(encoded: Encoded) -> Decoder:
    """Check `encoded` against its codec's layout and make its decoder; reads no component to its end.

    Raises:
        CodecError: codec or version unknown, a parameter impossible, a component missing or of wrong length.
    """
    codec = codec_class(encoded.codec)()
    check_components(codec, encoded)
    return codec.decoder(encoded)
