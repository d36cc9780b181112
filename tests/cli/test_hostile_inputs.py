"""Values that no model has, in files that anybody may hand us, are one line and the documented exit code."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import pytest

from edgepack.cli import execute
from edgepack.errors import ArchiveError, GGUFError
from edgepack.gguf.types import ValueType as Kind
from edgepack.gguf.types import array, f32, string, u32
from edgepack.gguf.writer import encode_header
from edgepack.packaging.index.member_names import check_folders

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LARGE = 2**200
NAN = float("nan")


@pytest.fixture
def model(books: Path, tmp_path: Path) -> Path:
    """The bundled model, each of whose files may be put in another's place."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in books.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def put(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end with a code; gives the one line that it said."""

    def call(code: int, *arguments: object) -> str:
        assert execute([str(each) for each in arguments]) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("edgepack: error: ")
        return line

    return call


def export_of(model: Path, *more: str) -> tuple[object, ...]:
    return ("export", model, "--target", "gguf-f16", "-o", model.parent / "out.gguf", *more)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", [["float32"], {"a": []}, 3, LARGE])
def test_a_dtype_that_is_no_name_decides_nothing(
    key: str, value: object, model: Path, books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights say themselves what they are, so that the key is not read."""
    config = json.loads((books / "config.json").read_text()) | {key: value}
    put(model / "config.json", json.dumps(config).encode())
    assert execute([str(each) for each in export_of(model, "--dry-run")]) == 0
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("value", [LARGE, 1e300, float("inf"), -float("inf"), NAN, "10000", [1e4], {}, 0, True])
@pytest.mark.parametrize("nested", [False, True])
def test_a_rope_base_that_no_float32_holds_is_refused(
    value: object, nested: bool, model: Path, books: Path, told: Callable[..., str]
) -> None:
    config: dict[str, Any] = json.loads((books / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_parameters": {"rope_type": "default", "rope_theta": value}} if nested else {"rope_theta": value}
    put(model / "config.json", json.dumps(config).encode())
    assert "rope_theta: expected a positive number" in told(3, *export_of(model))


@pytest.mark.parametrize("value", [LARGE, 1e300, "x", [2], NAN])
@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_a_rope_factor_that_is_no_number_is_refused(
    value: object, kind: str, model: Path, books: Path, told: Callable[..., str]
) -> None:
    config: dict[str, Any] = json.loads((books / "config.json").read_text())
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": value, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config["rope_parameters"] = rope | {"original_max_position_embeddings": 512}
    put(model / "config.json", json.dumps(config).encode())
    assert "factor: expected a positive number" in told(3, *export_of(model))


@pytest.mark.parametrize("key", ["rms_norm_eps", "hidden_size", "num_hidden_layers", "vocab_size", "head_dim"])
@pytest.mark.parametrize("text", ["1e400", "NaN", '"7"', "[7]", str(LARGE), "-1e400"])
def test_numbers_beyond_all_numbers_are_refused(
    key: str, text: str, model: Path, books: Path, told: Callable[..., str]
) -> None:
    config = json.loads((books / "config.json").read_text()) | {key: "here"}
    put(model / "config.json", json.dumps(config).replace('"here"', text).encode())
    line = told(3, *export_of(model))
    assert key in line
    assert "number" in line or "integer" in line


def test_a_tensor_of_300_dimensions_is_refused_in_safetensors(
    model: Path, books: Path, told: Callable[..., str]
) -> None:
    raw = (books / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    header["model.norm.weight"]["shape"] = [1] * 299 + [256]
    changed = json.dumps(header).encode()
    put(model / "model.safetensors", len(changed).to_bytes(8, "little") + changed + raw[end:])
    assert "64 dimensions, got 300" in told(3, *export_of(model))


@pytest.mark.parametrize("command", ["pack", "inspect", "export", "run", "fit", "analyze", "bench", "embed", "imatrix"])
def test_a_tensor_of_300_dimensions_is_refused_in_a_gguf(
    command: str, tmp_path: Path, told: Callable[..., str]
) -> None:
    name = b"token_embd.weight"
    entry = struct.pack("<Q", len(name)) + name + struct.pack("<I", 300) + struct.pack("<Q", 1) * 300
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + entry + bytes(96))
    (tmp_path / "text").write_text("once upon a time")
    more = {
        "export": ["--target", "gguf-q8", "-o", tmp_path / "y.gguf"],
        "embed": ["once"],
        "imatrix": ["--text", tmp_path / "text", "-o", tmp_path / "i.gguf"],
    }.get(command, [])
    line = told(6, command, tmp_path / "x.gguf", *more)
    assert "expected 1 to 4 dimensions, got 300" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text", "x.gguf"]


@pytest.mark.parametrize(
    "name",
    [
        "chat_template.jinja", "chat_template.json", "tokenizer_config.json", "tokenizer.json",
        "additional_chat_templates/rag.jinja",
    ],
)  # fmt: skip
def test_templates_and_vocabularies_that_are_not_utf8_are_refused(
    name: str, model: Path, books: Path, told: Callable[..., str]
) -> None:
    put(model / name, b"\xfa\xfb{{ messages }}")
    assert name.rpartition("/")[2] in told(5, *export_of(model))


def test_half_of_a_surrogate_pair_in_a_template_is_refused(model: Path, books: Path, told: Callable[..., str]) -> None:
    config = json.loads((books / "tokenizer_config.json").read_text()) | {"chat_template": "\ud800 {{ messages }}"}
    put(model / "tokenizer_config.json", json.dumps(config).encode())
    assert "chat_template: expected characters, got '\\ud800'" in told(5, *export_of(model))


def test_a_template_that_no_device_would_run_is_not_exported(
    model: Path, books: Path, told: Callable[..., str]
) -> None:
    config = json.loads((books / "tokenizer_config.json").read_text()) | {"chat_template": "x" * ((256 << 10) + 1)}
    put(model / "tokenizer_config.json", json.dumps(config).encode())
    assert "chat_template: expected at most 262144 characters, got 262145" in told(5, *export_of(model))
    put(model / "chat_template.jinja", b"x" * (5 << 20))
    assert "chat_template.jinja: expected at most" in told(5, *export_of(model))


@pytest.mark.parametrize("value", [f32(1e300), f32(float(LARGE)), u32(2**40), u32(-1), array(Kind.UINT32, [1, -1])])
def test_what_a_type_of_gguf_cannot_hold_is_named_by_its_key(value: Any) -> None:
    with pytest.raises(GGUFError, match="metadata key 'k': .* cannot hold"):
        encode_header({"k": value}, (), 32)


def test_no_text_that_is_no_text_is_written() -> None:
    for value in (string("\ud800"), array(Kind.STRING, ["a", "\ud800"])):
        with pytest.raises(GGUFError, match="expected characters"):
            encode_header({"k": value}, (), 32)


@pytest.mark.parametrize("names", [{"a", "a/b"}, {"a/b/c", "x", "a/b"}, {"a/b/c", "a"}])
def test_a_member_that_is_another_ones_folder_is_refused(names: set[str]) -> None:
    with pytest.raises(ArchiveError, match="is a member itself"):
        check_folders(names)


def test_members_in_folders_of_their_own_are_taken() -> None:
    check_folders({"a", "ab/c", "ab/d/e", "b/a"})
