"""RWKV's world vocabulary: a text file of byte strings, of which the longest that fits is always taken."""

from __future__ import annotations

import ast
import re
import warnings

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.files import TokenizerFiles, read_text
from edgepack.export.tokenizer.tokens import (
    MAX_TOKEN_BYTES,
    Token,
    TokenType,
    check_id,
    fill_table,
    table_metadata,
    vocabulary_size,
)
from edgepack.gguf.types import Value, string, u32

WORLD_FILE = "rwkv_vocab_v20230424.txt"
_LINE = re.compile(r"""(\d{1,9}) (b?(?:'.*'|".*")) (\d{1,9})\r?""")
_END_OF_TURN = b"\n\n"
_END_OF_TEXT = "<s>"


def read_rwkv_world(files: TokenizerFiles) -> dict[str, Value]:
    """The keys of a vocabulary in `rwkv_vocab_v20230424.txt`; id 0 ends a text, an empty line ends a turn.

    Raises:
        TokenizerError: a line that is no token, or a vocabulary that contradicts itself or the model.
    """
    pieces = _read_pieces(files)
    added = files.added.get(0)
    tokens = {0: Token(added.text if added else _END_OF_TEXT, TokenType.CONTROL)}
    # as llama.cpp takes escapes back: those of Python's byte strings
    tokens |= {index: Token(repr(piece)[2:-1], TokenType.NORMAL) for index, piece in pieces.items()}
    turn = next((index for index, piece in pieces.items() if piece == _END_OF_TURN), 0)
    return {
        "tokenizer.ggml.model": string("rwkv"),
        **table_metadata(fill_table(tokens, vocabulary_size(files.config, max(tokens))), scores=False),
        "tokenizer.ggml.bos_token_id": u32(0),
        "tokenizer.ggml.eos_token_id": u32(0),
        "tokenizer.ggml.eot_token_id": u32(turn),
    }


def _read_pieces(files: TokenizerFiles) -> dict[int, bytes]:
    pieces: dict[int, bytes] = {}
    for number, line in enumerate(read_text(files.folder / WORLD_FILE).removesuffix("\n").split("\n"), 1):
        where = f"{WORLD_FILE}: line {number}"
        match = _LINE.fullmatch(line) if len(line) <= 4 * MAX_TOKEN_BYTES else None
        piece = _literal(match[2]) if match else b""
        if not match or not 0 < len(piece) == int(match[3]) <= MAX_TOKEN_BYTES:
            raise TokenizerError(f"{where}: expected an id, a text and its length in bytes, got {line[:80]!r}")
        index = check_id(int(match[1]), where)
        if index == 0 or index in pieces:
            raise TokenizerError(f"{where}: expected an id of its own above 0, got {index}")
        pieces[index] = piece
    return pieces


def _literal(text: str) -> bytes:
    """The bytes of a Python literal; empty where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an escape that Python does not know
            value = ast.literal_eval(text)
        return value if isinstance(value, bytes) else str(value).encode("utf-8")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return b""
