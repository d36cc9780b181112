"""Makes the golden archive and patch of the present format version, for tests that hold old versions readable.

    python tools/make_golden_archive.py tests/packaging/golden

Run it once for each released format version; it never overwrites. The archive holds a tensor of every ggml type,
forty short texts with a dictionary, and a signature.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

from edgepack.errors import UsageError
from edgepack.gguf.types import GGMLType, TensorInfo, ValueType, array, string, u32
from edgepack.gguf.writer import GGUFWriter
from edgepack.packaging.coding import chunks
from edgepack.packaging.delta.diff import diff_files
from edgepack.packaging.format import MAJOR, MINOR
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.signing import generate_key, sign_archive


def stream_of(seed: str, count: int) -> bytes:
    """Bytes that depend on nothing but the seed, small numbers more often than large ones."""
    blocks = (hashlib.sha256(f"{seed} {number}".encode()).digest() for number in range(-(-count // 32)))
    return bytes(byte & byte >> 4 for byte in b"".join(blocks)[:count])


def write_model(path: Path, template: str) -> None:
    """A GGUF with three blocks of every type."""
    tensors = [TensorInfo(f"{kind.name.lower()}.weight", (3, kind.block_size), kind) for kind in GGMLType]
    metadata = {
        "general.architecture": string("llama"),
        "llama.block_count": u32(1),
        "tokenizer.ggml.tokens": array(ValueType.STRING, [f"token {number}" for number in range(1500)]),
        "tokenizer.chat_template": string(template),
    }
    with path.open("wb") as stream:
        writer = GGUFWriter(stream, metadata, tensors)
        writer.write_header()
        for tensor in tensors:
            writer.write(tensor.name, stream_of(tensor.name, tensor.nbytes))
        writer.close()


def main() -> None:
    """Write the golden files into the folder that is named."""
    folder = Path(sys.argv[1])
    name = f"archive-{MAJOR}.{MINOR}"
    archive, patch = folder / f"{name}.edgepack", folder / f"{name}.edgepatch"
    if archive.exists():
        raise UsageError(f"'{archive}': golden files are never overwritten")
    with tempfile.TemporaryDirectory() as scratch:
        model, key = Path(scratch) / "model.gguf", Path(scratch) / "key"
        write_model(model, "{{ messages }}")
        cards = [Path(scratch) / f"README.{number}.md" for number in range(40)]
        for number, card in enumerate(cards):
            card.write_text(f"# Adapter {number}\n" + "The licence of the base model holds for this adapter too. " * 6)
        chunks.WHOLE_BELOW_BYTES = 0  # every layout's planes, even where so few blocks would be smaller whole
        pack_archive(model, archive, include=cards)
        generate_key(key)
        sign_archive(archive, key)
        write_model(Path(scratch) / "next.gguf", "{% for message in messages %}{{ message }}{% endfor %}")
        diff_files(model, Path(scratch) / "next.gguf", patch)
        for path in (model, Path(scratch) / "next.gguf", archive, patch, key.with_name("key.pub")):
            print(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        (folder / f"{name}.pub").write_bytes(key.with_name("key.pub").read_bytes())


if __name__ == "__main__":
    main()
