"""Text to token ids and back by llama.cpp's own vocabulary; it evaluates nothing."""

from __future__ import annotations

import ctypes
from typing import Any

from edgepack.errors import ModelRuntimeError

_PIECE_BYTES = 256  # more than any ordinary token; longer ones are asked for a second time


class Vocabulary:
    """The vocabulary of a loaded model, which must outlive it.

    Args:
        pointer: `llama_vocab *`.
    """

    def __init__(self, pointer: Any) -> None:
        from llama_cpp import llama_cpp as c

        self._c = c
        self.pointer = pointer
        self._buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        self.size = int(c.llama_vocab_n_tokens(pointer))
        self._has_text = c.llama_vocab_type(pointer) != c.LLAMA_VOCAB_TYPE_NONE  # else llama.cpp would abort below

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`; see `LoadedModel.tokenize`."""
        if not self._has_text:
            raise ModelRuntimeError("the model has no vocabulary: it takes token ids only")
        raw = text.encode("utf-8", "surrogatepass")
        capacity = len(raw) + 16
        while True:
            tokens = (self._c.llama_token * capacity)()
            count = self._c.llama_tokenize(self.pointer, raw, len(raw), tokens, capacity, add_special, parse_special)
            if count >= 0:
                return list(tokens[:count])
            if -count <= capacity:
                raise ModelRuntimeError(f"llama.cpp cannot tokenize a text of {len(raw)} bytes")
            capacity = -count

    def pair(self, query: str, document: str) -> list[int]:
        """Query and document as cross-encoders read them (format_prompt_rerank of llama.cpp's server-common.cpp)."""
        c, vocabulary = self._c, self.pointer
        end = c.llama_vocab_eos(vocabulary) if c.llama_vocab_get_add_eos(vocabulary) else -1
        marks = [
            c.llama_vocab_bos(vocabulary) if c.llama_vocab_get_add_bos(vocabulary) else -1,
            end,
            c.llama_vocab_sep(vocabulary) if c.llama_vocab_get_add_sep(vocabulary) else -1,
            end,
        ]
        before, first, between, last = ([mark] if mark >= 0 else [] for mark in marks)
        asked = self.tokenize(query, add_special=False, parse_special=False)
        read = self.tokenize(document, add_special=False, parse_special=False)
        return [*before, *asked, *first, *between, *read, *last]

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token, which may end inside a character; control tokens are empty unless `special`."""
        if not self._has_text:
            return b""
        count = self._c.llama_token_to_piece(self.pointer, token, self._buffer, len(self._buffer), 0, special)
        if count < 0:
            self._buffer = ctypes.create_string_buffer(-count)
            count = self._c.llama_token_to_piece(self.pointer, token, self._buffer, len(self._buffer), 0, special)
        return self._buffer.raw[:count]

    def is_end(self, token: int) -> bool:
        """Whether `token` ends a turn or the text (EOS, EOT and their like)."""
        return self._has_text and bool(self._c.llama_vocab_is_eog(self.pointer, token))

    def text(self, token: int) -> str:
        """The vocabulary's own spelling of `token`, such as `<s>`; empty when there is no such token."""
        if not (self._has_text and 0 <= token < self.size):
            return ""
        raw: bytes = self._c.llama_vocab_get_text(self.pointer, token)
        return raw.decode("utf-8", "replace")

    @property
    def bos(self) -> int:
        """The beginning-of-sequence token, -1 when there is none."""
        return int(self._c.llama_vocab_bos(self.pointer)) if self._has_text else -1

    @property
    def eos(self) -> int:
        """The end-of-sequence token, -1 when there is none."""
        return int(self._c.llama_vocab_eos(self.pointer)) if self._has_text else -1

    @property
    def adds_bos(self) -> bool:
        """Whether tokenizing a text with `add_special` begins with BOS."""
        return self._has_text and bool(self._c.llama_vocab_get_add_bos(self.pointer))
