"""RWKV's world vocabulary: ids are those of the longest piece that fits, whatever its bytes are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.vocabulary import open_vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from llama_cpp import Llama

    from edgepack.gguf.types import Value

TEXTS = (
    "\n\n",
    "\r\n",
    "\\",
    "\\x41",
    "\t'\"",
    "'",
    '"',
    " the",
    " th",
    "日本",
    "é",
    "🦙🦙",
    "####",
    "\x00",
    "\x0b",
    "xx",
)


def pieces() -> list[bytes]:
    """As the published file has them: every byte, then what is longer; half a character may be a piece."""
    alone = [bytes([value]) for value in range(256)]
    longer = [text.encode() for text in TEXTS if len(text.encode()) > 1]
    return [*alone, *longer, "🦙".encode()[:3], b"\xff\xfe'\""]


def write_folder(folder: Path, lines: list[str] | None = None, **config: int) -> Path:
    folder.mkdir()
    if lines is None:
        shown = (repr(each.decode() if each.isascii() else each) for each in pieces())
        lines = [f"{i} {text} {len(each)}" for i, (each, text) in enumerate(zip(pieces(), shown, strict=True), 1)]
    (folder / "rwkv_vocab_v20230424.txt").write_bytes(("\n".join(lines) + "\n").encode())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RwkvTokenizer"}))
    return folder


def longest_pieces(text: bytes) -> list[int]:
    ids = {piece: index for index, piece in enumerate(pieces(), 1)}
    found, at = [], 0
    while at < len(text):
        length = max(n for n in range(1, 9) if text[at : at + n] in ids and at + n <= len(text))
        found.append(ids[text[at : at + length]])
        at += length
    return found


def test_ids_and_bytes_are_those_of_the_file(
    tmp_path: Path, nasty: str, load_vocabulary: Callable[[Mapping[str, Value]], Llama]
) -> None:
    size = len(pieces()) + 10
    vocabulary = open_vocabulary(write_folder(tmp_path / "model"), {"vocab_size": size})
    llama = load_vocabulary(vocabulary.metadata)
    text = (nasty + "".join(TEXTS[:-3])).encode()
    ids = llama.tokenize(text, add_bos=False)
    assert ids == longest_pieces(text)
    assert llama.detokenize(ids) == text
    assert (llama.n_vocab(), llama.token_bos(), llama.token_eos()) == (size, 0, 0)
    assert vocabulary.metadata["tokenizer.ggml.eot_token_id"].value == 257


def test_the_end_of_text_has_the_name_that_the_checkpoint_gives_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "added_tokens.json").write_text(json.dumps({"<|rwkv_tokenizer_end_of_text|>": 0}))
    tokens = open_vocabulary(folder, {}).metadata["tokenizer.ggml.tokens"].value
    assert tokens[0] == "<|rwkv_tokenizer_end_of_text|>"


@pytest.mark.parametrize(
    "line",
    ["1 'a'", "1 'a' 2", "1 a 1", "x 'a' 1", "0 'a' 1", "1 '' 0", "1 'a'+'b' 2", "1 '\\ud800' 3", "1 '\\x' 1", ""],
)
def test_a_line_that_is_no_token_is_named(line: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"rwkv_vocab_v20230424\.txt: line 1"):
        open_vocabulary(write_folder(tmp_path / "model", [line]), {})


def test_an_id_stands_for_one_piece(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", ["1 'a' 1", "1 'b' 1"])
    with pytest.raises(TokenizerError, match="line 2: expected an id of its own above 0, got 1"):
        open_vocabulary(folder, {})
