"""Small model files of every kind that was published against llama.cpp, Ollama, gguf-py and SGLang; makes them only.

Each is described by where its kind became known; `attack.py` and tests hold edgepack against them. The files are
written from the public descriptions; none is anybody's proof of concept.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tiny_models import Shape, metadata, tensors

from edgepack.gguf.types import Value, ValueType, array, boolean, f32, string, u32
from edgepack.gguf.writer import encode_header, place_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STRINGS, INTEGERS, BYTES = ValueType.STRING, ValueType.INT32, ValueType.UINT8
F32, I8 = 0, 24  # ggml types as they are stored
Tensor = tuple[str, tuple[int, ...], int, int]  # name, ne, type, offset


@dataclass(frozen=True)
class HostileFile:
    """A file, where its kind is described, and what is wrong with it.

    Attributes:
        kind: of the advisory or thread, as the table of SECURITY.md has it.
        what: is wrong.
        content: the file.
        command: arguments behind `edgepack`, FILE for the file.
    """

    kind: str
    what: str
    content: bytes
    command: tuple[str, ...] = ("run", "FILE", "--prompt", "a", "-n", "1", "--ctx", "64")


def model(changes: Mapping[str, Value | None] | None = None, cut: int = 0) -> bytes:
    """A tiny model whose metadata is changed (None: left out), its last `cut` bytes missing."""
    keys = {key: value for key, value in {**metadata(Shape()), **(changes or {})}.items() if value is not None}
    placed = place_tensors(tensors(Shape()))
    end = placed[-1].offset + placed[-1].nbytes
    return encode_header(keys, placed, 32) + bytes(end - cut)


def raw(
    pairs: Sequence[bytes], infos: Sequence[Tensor], data: int = 64, counts: tuple[int, int] | None = None
) -> bytes:
    """A container of any counts, pairs and tensors, sound or not."""
    n_tensors, n_pairs = counts or (len(infos), len(pairs))
    out = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_pairs) + b"".join(pairs)
    for name, ne, kind, offset in infos:
        text = name.encode()
        out += struct.pack("<Q", len(text)) + text + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, kind, offset)
    return out + bytes(-len(out) % 32) + bytes(data)


def pair(key: str, kind: ValueType, value: bytes) -> bytes:
    """A metadata pair."""
    text = key.encode()
    return struct.pack("<Q", len(text)) + text + struct.pack("<I", kind) + value


LLAMA = pair("general.architecture", ValueType.STRING, struct.pack("<Q", 5) + b"llama")


def _vocabulary(**kinds: object) -> dict[str, Value | None]:
    return {f"tokenizer.ggml.{name}": value for name, value in kinds.items()}  # type: ignore[misc]


def _tokens() -> tuple[list[str], list[int]]:
    meta = metadata(Shape())
    return list(meta["tokenizer.ggml.tokens"].value), list(meta["tokenizer.ggml.token_type"].value)


def _with_token(text: str, kind: int, model_name: str = "llama") -> bytes:
    """The last token is `text`, of that type."""
    tokens, types = _tokens()
    tokens[-1], types[-1] = text, kind
    return model(
        _vocabulary(
            model=string(model_name), tokens=array(STRINGS, tokens), token_type=array(INTEGERS, types)
        )
    )  # fmt: skip


def _containers() -> list[HostileFile]:
    huge = 2**63 - 1
    one = [("t", (4,), F32, 0)]
    sizes = "CVE-2025-53630"
    return [
        HostileFile(sizes, "sizes of tensors that add up beyond 2^64",
                    raw([LLAMA], [("a", (2**61, 1), F32, 0), ("b", (2**61, 1), F32, 2**63)])),
        HostileFile(sizes, "a dimension of 2^42 + 1 (#18674)", raw([LLAMA], [("a", (1152, 2**42 + 1), F32, 0)])),
        HostileFile("CVE-2026-27940", "2^58 tensors: the size of their table overflows",
                    raw([LLAMA], one, 64, (2**58, 1))),
        HostileFile("CVE-2026-27940", "2^63 metadata pairs", raw([LLAMA], one, 64, (1, 2**63))),
        HostileFile("CVE-2026-33298", "a product of dimensions that is small modulo 2^64",
                    raw([LLAMA], [("a", (4194305, 4194305, 211106198978564), F32, 0)])),
        HostileFile("#27203", "INT64_MAX x 2 elements", raw([LLAMA], [("a", (huge, 2), I8, 0)])),
        HostileFile("#26318", "a tensor so large that padding wraps to 0", raw([LLAMA], [("a", (2**62 - 1,), F32, 0)])),
        HostileFile("#26318", "an alignment of another type", raw([LLAMA, pair("general.alignment", ValueType.INT32,
                    struct.pack("<i", 32))], one)),
        HostileFile("#26318", "an alignment of 2^31", raw([LLAMA, pair("general.alignment", ValueType.UINT32,
                    struct.pack("<I", 2**31))], one)),
        HostileFile("#26318", "a tensor without elements", raw([LLAMA], [("a", (0,), F32, 0)])),
        HostileFile("#27188", "49 bytes with an array of 2^63 items",
                    raw([pair("a", ValueType.ARRAY, struct.pack("<IQ", BYTES, 2**63))], [], 0)[:49]),
        HostileFile("#27188", "a string of 2^63 bytes",
                    raw([pair("a", ValueType.STRING, struct.pack("<Q", 2**63))], [])),
        HostileFile("#25378", "a million dimensions", raw([LLAMA], [("a", (1,) * 5, F32, 0)])),
        HostileFile("#24884", "an empty metadata key", model({"": u32(1)})),
        HostileFile("CVE-2026-7482", "a tensor that ends behind the file", model(cut=4096)),
        HostileFile("CVE-2026-7482", "a tensor that begins behind the file",
                    raw([LLAMA], [("a", (16,), F32, 1 << 20)])),
        HostileFile("CVE-2026-7482", "the same, requantised", model(cut=4096),
                    ("export", "FILE", "--target", "gguf-q8", "-o", "OUT")),
        HostileFile("container", "two tensors in the same bytes",
                    raw([LLAMA], [("a", (16,), F32, 0), ("b", (16,), F32, 0)])),
        HostileFile("container", "a tensor's name twice", raw([LLAMA], [("a", (8,), F32, 0), ("a", (8,), F32, 32)])),
        HostileFile("container", "an unknown tensor type", raw([LLAMA], [("a", (8,), 999, 0)])),
        HostileFile("container", "an unknown value type", raw([pair("a", ValueType.UINT8, b"")[:-4]
                    + struct.pack("<I", 77)], [])),
    ]  # fmt: skip


def _vocabularies() -> list[HostileFile]:
    tokens, _types = _tokens()
    count = len(tokens)
    twice = [*tokens[:-1], tokens[-2]]
    few = {f"tokenizer.ggml.{name}_token_id": None for name in ("bos", "eos", "unknown")}
    small = "CVE-2025-49847"
    return [
        HostileFile(small, "a token type for fewer tokens", model(_vocabulary(token_type=array(INTEGERS, [1])))),
        HostileFile(small, "a special token outside", model(_vocabulary(bos_token_id=u32(count)))),
        HostileFile(small, "two tokens, special ones by default (#25508)", model(
            {**_vocabulary(tokens=array(STRINGS, tokens[:2]), scores=None, token_type=None), **few})),
        HostileFile("#24885", "the same token twice (official Gemma 4 files: #25739)",
                    model(_vocabulary(tokens=array(STRINGS, twice)))),
        HostileFile("#24885", "the same token twice, after a NUL", _with_token(f"{tokens[-2]}\0x", 1)),
        HostileFile("#24885", "add_bos without BOS", model(
            {**_vocabulary(model=string("t5"), add_bos_token=boolean(True)), **few})),
        HostileFile("#25969", "the byte <0x-1>, written before its array", _with_token("<0x-1>", 6, "plamo2")),
        HostileFile("#25969", "the byte <0xZZ>", _with_token("<0xZZ>", 6)),
        HostileFile("#25969", "a byte without digits", _with_token("<", 6)),
        HostileFile("#24888", "scores of one byte each", model(_vocabulary(scores=array(BYTES, [0] * count)))),
        HostileFile("#24888", "token types of one byte each", model(_vocabulary(token_type=array(BYTES, [1] * count)))),
        HostileFile("#24888", "suppressed tokens of one byte each", model(_vocabulary(
            suppress_tokens=array(BYTES, [1] * 3)))),
        HostileFile("#24888", "a map of characters of two bytes", model(_vocabulary(
            model=string("t5"), precompiled_charsmap=array(BYTES, [1, 2])))),
        HostileFile("#24888", "a map of characters whose trie is 2 GB", model(_vocabulary(
            model=string("t5"), precompiled_charsmap=array(BYTES, [252, 255, 255, 127, 0, 0, 0, 0])))),
        HostileFile("#25969", "WordPiece with bytes: aborts", model(_vocabulary(model=string("bert")))),
        HostileFile("#25969", "RWKV with bytes: never ends", model(_vocabulary(model=string("rwkv")))),
    ]  # fmt: skip


def _numbers() -> list[HostileFile]:
    layers = "#25821"
    return [
        HostileFile(layers, "513 layers", model({"llama.block_count": u32(513)})),
        HostileFile(layers, "2^32 - 1 layers", model({"llama.block_count": u32(2**32 - 1)})),
        HostileFile("numbers", "heads for fewer layers than there are",
                    model({"llama.attention.head_count": array(ValueType.UINT32, [4])})),
        HostileFile("numbers", "a negative epsilon: aborts at the first token",
                    model({"llama.attention.layer_norm_rms_epsilon": f32(-1.0)})),
        HostileFile("numbers", "no KV heads: a division by zero", model({"llama.attention.head_count_kv": u32(0)})),
        HostileFile("numbers", "513 experts",
                    model({"llama.expert_count": u32(513), "llama.expert_used_count": u32(1)})),
        HostileFile("numbers", "a kind of pooling that does not exist", model({"llama.pooling_type": u32(77)})),
        HostileFile("numbers", "an unknown rope scaling", model({"llama.rope.scaling.type": string("nosuch")})),
    ]  # fmt: skip


def _texts() -> list[HostileFile]:
    escape = "{{ lipsum.__globals__['os'].popen('touch escaped').read() }}{{ messages[0].content }}"
    chat = ("run", "FILE", "--chat", "--prompt", "a", "-n", "1", "--ctx", "64")
    grammar = ("run", "FILE", "--prompt", "a", "-n", "4", "--ctx", "64", "--grammar")
    return [
        HostileFile("CVE-2026-5760", "a template that runs a command",
                    model({"tokenizer.chat_template": string(escape)}), chat),
        HostileFile("CVE-2026-5760", "a template that imports", model(
            {"tokenizer.chat_template": string("{{ cycler.__init__.__globals__['__builtins__']['open']('x', 'w') }}")}),
            chat),
        HostileFile("#22234", "a grammar that refers to itself first", model(), (*grammar, "root ::= root")),
        HostileFile("#22234", "a grammar with a rule that is not there", model(), (*grammar, "root ::= nothing")),
        HostileFile("#22234", "a grammar that repeats 10^9 times", model(), (*grammar, 'root ::= "a"{1000000000}')),
        HostileFile("#22234", "a grammar without an end", model(), (*grammar, 'root ::= "a')),
    ]  # fmt: skip


def hostile_files() -> list[HostileFile]:
    """Every file, in the order of the table."""
    return [*_containers(), *_vocabularies(), *_numbers(), *_texts()]
