"""Writes the reference part of docs/api.md from signatures and docstrings: what is documented is what is there.

    python tools/api_document.py            rewrite what stands between the markers
    python tools/api_document.py --check    exit code 1 when it would change

The examples above the reference are written by hand; tests/test_api_document.py runs them.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import edgepack

if TYPE_CHECKING:
    from collections.abc import Mapping

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/api.md"
BEGIN, END = "<!-- reference -->", "<!-- /reference -->"
# What functions give back, in the order of the functions; a dotted name each.
RESULTS = (
    "pipeline.export_result.ExportResult",
    "api.compress.CompressResult",
    "packaging.pack.PackResult",
    "packaging.estimate.Estimate",
    "packaging.restore.unpack.UnpackResult",
    "api.unpacking.NativeResult",
    "api.extracting.Extracted",
    "packaging.delta.diff.DiffResult",
    "packaging.delta.patch.PatchResult",
    "api.checking.VerifyResult",
    "packaging.verify.Problem",
    "packaging.trust.signatures.SignatureReport",
    "packaging.inspection.Inspection",
    "packaging.inspection.MemberFacts",
    "packaging.inspection.StreamFacts",
    "packaging.inspection.ArchiveFacts",
    "packaging.inspection.DictionaryFacts",
    "packaging.inspection.TensorFacts",
    "api.checking.Signed",
    "api.checking.KeyPair",
    "edge.chat.completion.Completion",
    "edge.chat.completion.CompletionStream",
    "api.validation.ValidationResult",
    "api.validation.ComparisonResult",
    "api.validation.ReplayResult",
    "pipeline.certify.Certified",
    "api.importance.ImportanceResult",
    "api.analysis.Analysis",
    "edge.fidelity.tasks.tasks.Comparison",
    "api.speed.FitResult",
    "api.speed.FitMemory",
    "edge.bench.BenchResult",
    "edge.bench.Speed",
    "progress.Progress",
)
_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields):")
_TITLES = {"Args": "", "Attributes": "", "Returns": "Returns", "Raises": "Raises", "Yields": "Yields"}


def reference() -> str:
    """The whole reference as Markdown."""
    names = [name for name in edgepack.__all__ if name != "__version__"]
    found = {name: getattr(edgepack, name) for name in names}
    functions = [name for name, value in found.items() if not inspect.isclass(value) and _is_callable(value)]
    classes = [value for value in found.values() if inspect.isclass(value)]
    results = [_by_name(dotted) for dotted in RESULTS]
    parts = ["## Functions", *(_function(f"edgepack.{name}", found[name]) for name in functions)]
    parts += ["## Classes", *(_class(value, "edgepack.") for value in classes)]
    parts += ["## Results", *(_class(value, "") for value in results)]
    return "\n\n".join(parts)


def _is_callable(value: object) -> bool:
    """Functions, and parts that are functions too (`edgepack.export`); not plain modules."""
    return callable(value)


def _by_name(dotted: str) -> type:
    module, _, name = f"edgepack.{dotted}".rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


def _function(name: str, value: object, level: str = "###") -> str:
    shown = f"```text\n{signature_text(name, value)}\n```"
    return "\n\n".join([f"{level} `{name}`", shown, *_document(inspect.getdoc(value) or "")])


def _class(value: type, prefix: str) -> str:
    types = inspect.get_annotations(value)
    parts = [f"### `{prefix}{value.__name__}`", *_document(inspect.getdoc(value) or "", types)]
    members = {name: member for name, member in vars(value).items() if not name.startswith("_")}
    facts = [(name, member) for name, member in members.items() if isinstance(member, property)]
    if facts:
        parts.append("\n".join(_fact(name, member) for name, member in facts))
    methods = [(name, member) for name, member in members.items() if inspect.isfunction(member)]
    parts += [_function(f"{value.__name__}.{name}", member, "####") for name, member in methods]
    return "\n\n".join(parts)


def _fact(name: str, member: property) -> str:
    kind = inspect.signature(member.fget).return_annotation if member.fget else ""
    return f"- `{name}: {kind}`: {_first_words(inspect.getdoc(member))}"


def _first_words(document: str | None) -> str:
    text = " ".join((document or "").split("\n\n")[0].split()).rstrip(".")
    return text[:1].lower() + text[1:] if not text.startswith(("GGUF", "SHA")) else text


def signature_text(name: str, value: object) -> str:
    """`name(file: FilePath, …) -> Result`, an argument a line where one line would be long."""
    signature = inspect.signature(value)  # type: ignore[arg-type]
    parts, marked = [], False
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not marked:
            parts, marked = [*parts, "*"], True
        parts.append(_parameter(parameter))
    returns = signature.return_annotation
    end = "" if returns is signature.empty else f" -> {returns}"
    line = f"{name}({', '.join(parts)}){end}"
    return line if len(line) <= 100 else "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){end}"])


def _parameter(parameter: inspect.Parameter) -> str:
    text = f"{parameter.name}: {parameter.annotation}"
    if parameter.default is parameter.empty:
        return text
    default = getattr(parameter.default, "__name__", None) or repr(parameter.default)
    return f"{text} = {default}"


def _document(text: str, types: Mapping[str, object] | None = None) -> list[str]:
    """Paragraphs and lists of a docstring's prose and sections; attributes with their types."""
    parts: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip()):
        first, _, rest = block.partition("\n")
        section = _SECTION.fullmatch(first.strip())
        if section:
            parts.append(_section(_TITLES[section[1]], inspect.cleandoc(rest), types or {}))
        else:
            parts.append(" ".join(block.split()))
    return parts


def _section(title: str, text: str, types: Mapping[str, object]) -> str:
    items: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith(" ") and items:
            items[-1].append(line.strip())
        else:
            items.append([line.strip()])
    lines = [_item(" ".join(item), types) for item in items]
    if title and len(lines) == 1:
        return f"{title} {lines[0]}"
    listed = "\n".join(f"- {line}" for line in lines)
    return f"{title}:\n\n{listed}" if title else listed


def _item(text: str, types: Mapping[str, object]) -> str:
    """`name: what` with the names, and their types where they have one, as code; other text as it is."""
    names, colon, what = text.partition(": ")
    if not colon or not re.fullmatch(r"[\w.]+(, [\w.]+)*", names):
        return text
    shown = [f"{name}: {types[name]}" if name in types else name for name in names.split(", ")]
    return f"{', '.join(f'`{name}`' for name in shown)}: {what}"


def rendered(document: str) -> str:
    """The document with the reference made anew."""
    head, _, rest = document.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{reference()}\n\n{END}{tail}"


def main() -> int:
    """Rewrite, or check."""
    document = DOCUMENT.read_text(encoding="utf-8")
    new = rendered(document)
    if "--check" in sys.argv[1:]:
        return int(new != document)
    DOCUMENT.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
