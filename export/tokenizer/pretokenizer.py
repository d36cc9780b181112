"""Recognises a BPE pre-tokenizer by its structure: the split expressions, their order and options.

The known structures are left to `split_expressions`; no text is encoded and nothing is hashed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.files import kind_of
from edgepack.export.tokenizer.split_expressions import CONTRACTIONS, GPT2, KNOWN_STRUCTURES, PreName

_SPELLINGS = (
    ("\r", r"\r"),
    ("\n", r"\n"),
    ("\t", r"\t"),
    (r"'(?i:[sdmt]|ll|ve|re)", CONTRACTIONS),
    (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", CONTRACTIONS),
    # `\s*` is greedy and holds newlines: one behind it is as good as many
    (r"\s*[\r\n]+", r"\s*[\r\n]"),
    ("{1}", ""),
)
_POSSESSIVE = re.compile(r"(\[(?:\\.|[^\]\\])*\]|\\.)|([?+*])\+")  # classes and escapes are left alone
_MOST_CHARACTERS = 10_000  # of a split expression; the longest known one has about 600
_MAX_STEPS = 32


@dataclass(frozen=True)
class Splitting:
    """How text is cut into words before merging.

    Attributes:
        steps: split expressions in canonical spelling, each applied to the pieces of the one before.
        byte_level: whether words are then spelt in GPT-2's byte alphabet.
    """

    steps: tuple[str, ...]
    byte_level: bool


class _UnknownStepError(Exception):
    """A step that llama.cpp has no counterpart for; its text shows the step."""


def canonical_expression(expression: str) -> str:
    """One spelling for expressions that match alike: escapes, contractions, possessive quantifiers."""
    for old, new in _SPELLINGS:
        expression = expression.replace(old, new)
    # possessive quantifiers stand where backtracking could not help (before a disjoint class)
    return _POSSESSIVE.sub(lambda match: match[1] or match[2], expression)


def choose_pre(tokenizer: Mapping[str, Any], *, ignore_merges: bool, family: str) -> PreName:
    """The name for `tokenizer.ggml.pre` under which llama.cpp splits as this tokenizer does.

    Args:
        tokenizer: parsed `tokenizer.json`.
        ignore_merges: the model's flag; a name that agrees is preferred.
        family: the configuration's `model_type`: decides among names that mean the same.

    Raises:
        TokenizerError: the structure is not known; the text shows it with the nearest known one.
    """
    try:
        splitting = read_splitting(tokenizer)
    except _UnknownStepError as error:
        raise _unknown(str(error)) from None
    names = KNOWN_STRUCTURES.get(splitting.steps)
    if names is None or not splitting.byte_level:
        raise _unknown(_show(splitting.steps) + ("" if splitting.byte_level else " (not byte-level)"))
    agreeing = [name for name in names if name.ignore_merges == ignore_merges] or list(names)
    return next((name for name in agreeing if family in name.families), agreeing[0])


def read_splitting(tokenizer: Mapping[str, Any]) -> Splitting:
    """The normaliser and pre-tokenizer of a `tokenizer.json` as split expressions."""
    for normalizer in flatten(tokenizer.get("normalizer"), "normalizers"):
        # llama.cpp normalises nothing before BPE; published text is NFC already
        if kind_of(normalizer) != "NFC":
            raise _UnknownStepError(f"normalizer {brief(normalizer)}")
    steps: list[str] = []
    byte_level = False
    for entry in flatten(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        step, is_bytes = _read_step(entry)
        steps += [step] if step else []
        byte_level |= is_bytes
    return Splitting(tuple(steps), byte_level)


def flatten(entry: Any, key: str) -> list[Mapping[str, Any]]:
    """A step, or the steps of a (nested) Sequence; none for null.

    Args:
        entry: a `normalizer` or a `pre_tokenizer`.
        key: the member that lists a Sequence's steps.

    Raises:
        TokenizerError: no object, or more than `_MAX_STEPS` steps.
    """
    flat: list[Mapping[str, Any]] = []
    pending = [entry]
    while pending:
        current = pending.pop(0)
        if current is None:
            continue
        if not isinstance(current, Mapping):
            raise TokenizerError(f"tokenizer.json: expected {key} to be objects, got {str(current)[:80]!r}")
        if kind_of(current) == "Sequence" and isinstance(current.get(key), list):
            pending = current[key] + pending
        else:
            flat.append(current)
        if len(pending) + len(flat) > _MAX_STEPS:
            raise TokenizerError(f"tokenizer.json: expected at most {_MAX_STEPS} {key}, got more")
    return flat


def _read_step(entry: Mapping[str, Any]) -> tuple[str, bool]:
    """The split expression of one step (empty if it does not split) and whether it maps bytes."""
    kind = kind_of(entry)
    if kind == "ByteLevel" and entry.get("add_prefix_space") is not True:
        return (GPT2 if entry.get("use_regex", True) else ""), True
    if kind == "Digits":
        return (r"\p{N}" if entry.get("individual_digits") else r"\p{N}+"), False
    if kind == "Split":
        return _read_split(entry), False
    raise _UnknownStepError(brief(entry))


def _read_split(entry: Mapping[str, Any]) -> str:
    pattern = entry.get("pattern")
    expression = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    if not isinstance(expression, str) or len(expression) > _MOST_CHARACTERS:
        raise _UnknownStepError(brief(entry))
    behavior = (entry.get("behavior"), entry.get("invert") is True)
    # keeping only the matches is the same as isolating them when every character is in one
    if behavior != ("Isolated", False) and not (behavior == ("Removed", True) and expression.endswith(r"|\s+")):
        raise _UnknownStepError(brief(entry))
    return canonical_expression(expression)


def brief(entry: Mapping[str, Any]) -> str:
    """A step in one short line, for messages."""
    named = ((str(key).encode("unicode_escape").decode(), value) for key, value in entry.items() if key != "type")
    kind = str(entry.get("type")).encode("unicode_escape").decode()
    return f"{kind}({', '.join(f'{key}={value!r}' for key, value in named)})"[:400]


def _show(steps: tuple[str, ...]) -> str:
    return " then ".join(f"'{step}'" for step in steps)[:1000] or "no split at all"


def _unknown(shown: str) -> TokenizerError:
    known = {_show(steps): names[0].name for steps, names in KNOWN_STRUCTURES.items()}
    matcher = difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2(shown)

    def likeness(candidate: str) -> float:
        matcher.set_seq1(candidate)
        return matcher.ratio()

    nearest = max(known, key=likeness)
    return TokenizerError(
        f"tokenizer.json: the pre-tokenizer is not one that llama.cpp has: {shown}; "
        f"the nearest is '{known[nearest]}': {nearest}; --pre NAME decides"
    )
