"""Tries one grammar or JSON schema in a process of its own, which may die of it: a JSON request in, an answer out.

llama.cpp's parsers recurse without a bound and print to standard error; here that costs nobody a model or a terminal.
Started by `check`; it imports nothing of edgepack.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
from typing import Any

_MEMORY_BYTES = 3 << 30
_BYTES = 256
_MESSAGE_BYTES = 2000
_UNKNOWN_STRUCT_BYTES = 8192  # LlgConstraintInit, filled by the library itself: far more than it is


class _TokenizerInit(ctypes.Structure):
    """`LlgTokenizerInit` of llguidance.h, with room for what later versions add."""

    _fields_ = (
        ("vocab_size", ctypes.c_uint32),
        ("tok_eos", ctypes.c_uint32),
        ("token_lens", ctypes.c_void_p),
        ("token_bytes", ctypes.c_void_p),
        ("tokenizer_json", ctypes.c_char_p),
        ("tokenize_assumes_string", ctypes.c_bool),
        ("tokenize_fn", ctypes.c_void_p),
        ("use_approximate_greedy_tokenize_fn", ctypes.c_bool),
        ("tokenize_user_data", ctypes.c_void_p),
        ("slices", ctypes.c_void_p),
        ("later", ctypes.c_void_p * 16),
    )


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows: there only time is bounded
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _try_grammar(library: ctypes.CDLL, grammar: str) -> dict[str, Any]:
    """llama.cpp's parser, which takes no vocabulary to parse; why it refuses stands on standard error."""
    begin = library.llama_sampler_init_grammar
    begin.restype, begin.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p]
    return {"grammar": grammar} if begin(None, grammar.encode(), b"root") else {"error": ""}


def _try_schema(library: ctypes.CDLL, schema: str) -> dict[str, Any]:
    """llguidance, which xllamacpp follows schemas with, on a vocabulary of bytes; its first mask included."""
    address, size = ctypes.c_void_p, ctypes.c_size_t
    for name, result, arguments in (
        ("llg_new_tokenizer", address, [address, address, size]),
        ("llg_constraint_init_set_defaults", None, [address, address]),
        ("llg_new_matcher", address, [address, ctypes.c_char_p, ctypes.c_char_p]),
        ("llg_matcher_get_error", ctypes.c_char_p, [address]),
        ("llg_matcher_compute_mask", ctypes.c_int, [address]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    tokenizer = _byte_tokenizer(library)
    init = ctypes.create_string_buffer(_UNKNOWN_STRUCT_BYTES)
    library.llg_constraint_init_set_defaults(init, tokenizer)
    matcher = library.llg_new_matcher(init, b"json_schema", schema.encode())
    error = library.llg_matcher_get_error(matcher)
    if error is None:
        library.llg_matcher_compute_mask(matcher)
        error = library.llg_matcher_get_error(matcher)
    return {} if error is None else {"error": error.decode("utf-8", "replace")}


def _byte_tokenizer(library: ctypes.CDLL) -> int:
    lengths = (ctypes.c_uint32 * (_BYTES + 1))(*([1] * _BYTES), len(b"<eos>"))
    spelling = ctypes.create_string_buffer(bytes(range(_BYTES)) + b"<eos>")
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    init = _TokenizerInit(
        vocab_size=_BYTES + 1, tok_eos=_BYTES, token_lens=ctypes.addressof(lengths),
        token_bytes=ctypes.addressof(spelling), use_approximate_greedy_tokenize_fn=True,
    )  # fmt: skip
    tokenizer: int | None = library.llg_new_tokenizer(ctypes.byref(init), message, _MESSAGE_BYTES)
    if not tokenizer:
        raise AttributeError(message.value.decode("utf-8", "replace"))
    return tokenizer


def _converted(schema: str) -> str:
    """llama-cpp-python's own grammar for a schema."""
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    return str(json_schema_to_gbnf(schema))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    grammar, schema = request["grammar"], request["schema"]
    try:
        if grammar is None and request["engine"] == "llama-cpp-python":
            grammar = _converted(schema)
        _limit_memory()
        library = ctypes.CDLL(request["library"])
        return _try_schema(library, schema) if grammar is None else _try_grammar(library, grammar)
    except (AttributeError, OSError):
        return {"grammar": grammar, "unchecked": True}  # a build that exports nothing: the engine checks alone
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError, NotImplementedError, MemoryError) as error:
        return {"error": str(error) or type(error).__name__}


if __name__ == "__main__":
    print(json.dumps(_answer(json.load(sys.stdin))))
