"""Images in prompts: what a model answers about them, and what is refused before or while it looks."""

from __future__ import annotations

import contextlib
import json
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from references.seen_logits import logits_behind
from references.tiny_checkpoints import TinyModel, random_model, write_checkpoint
from references.tiny_images import png
from references.tiny_projectors import EYES, picture, write_eyes

import edgepack
from edgepack.api.opening import OpenOptions, open_file
from edgepack.cli import execute
from edgepack.edge.fit.choice import Fitter, FitWish
from edgepack.edge.fit.opening import running_device
from edgepack.edge.fit.shape import read_shape
from edgepack.edge.install.model_file import prepare
from edgepack.edge.install.projector import projector_of
from edgepack.edge.llama.check_projector import check_projector
from edgepack.edge.llama.image import Eyes, PicturePrompt, row_break
from edgepack.edge.llama.image_file import MAX_SIDE, Picture, image_size, picture_of, read_picture
from edgepack.edge.llama.options import RuntimeOptions, SamplingOptions
from edgepack.edge.llama.runtime import LoadedModel
from edgepack.errors import EdgepackError, GGUFError, ModelRuntimeError, UsageError
from edgepack.gguf.reader import read_header
from edgepack.gguf.types import Value, ValueType, u32
from edgepack.gguf.writer import GGUFWriter
from edgepack.pipeline.export import run_export
from edgepack.pipeline.request import ExportRequest
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXT = "Once upon a time"
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"


class Seeing:
    """A tiny model that sees, as files: checkpoint, model, projector, archive, two images."""

    def __init__(self, folder: Path, books: Path) -> None:
        self.folder = folder / "TinyVLM"
        write_eyes(EYES[0], self.folder, books)
        (self.folder / "chat_template.jinja").write_text(TEMPLATE)
        made = run_export(
            ExportRequest(self.folder, "gguf-f32", mmproj=True, mmproj_type="f32", output=folder / "m.gguf")
        )
        assert made.projector is not None
        self.model, self.projector = made.output, made.projector
        packed = ExportRequest(self.folder, "gguf-f32", mmproj=True, output=folder / "m.edgepack")
        self.archive = run_export(packed).output
        self.images = [folder / "a.png", folder / "b.png"]
        for number, path in enumerate(self.images):
            path.write_bytes(png(picture(EYES[0], seed=number)))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of these tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory, books: Path) -> Seeing:
    return Seeing(tmp_path_factory.mktemp("seeing"), books)


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory, books: Path) -> Path:
    """A model that only reads, of another width."""
    folder = tmp_path_factory.mktemp("reading")
    tiny = TinyModel("llama", "Llama", {"hidden_size": 128})
    write_checkpoint(random_model(tiny), folder / "m", books)
    return run_export(ExportRequest(folder / "m", "gguf-q8", output=folder / "m.gguf")).output


def changed(path: Path, out: Path, **settings: Value | None) -> Path:
    """A projector with other metadata; `__` in a name stands for a dot."""
    header = read_header(path)
    metadata = dict(header.metadata)
    for name, value in settings.items():
        key = name.replace("__", ".")
        if value is None:
            del metadata[key]
        else:
            metadata[key] = value
    raw = path.read_bytes()
    with out.open("wb") as stream:
        writer = GGUFWriter(stream, metadata, [replace(tensor, offset=0) for tensor in header.tensors])
        writer.write_header()
        for tensor in header.tensors:
            start = header.data_start + tensor.offset
            writer.write(tensor.name, memoryview(raw[start : start + tensor.nbytes]))
        writer.close()
    return out


@pytest.mark.parametrize(
    ("name", "grid", "tolerance"),
    [
        ("smolvlm", None, 1e-4),
        ("gemma-3", None, 6e-3),  # GELU
        ("qwen-2.5-vl", (5, 6), 1e-4),
        ("qwen-3-vl", (4, 6), 1e-4),
        ("lfm-2-vl", None, 1e-4),
        ("mistral-3", None, 1e-4),
    ],
)
def test_what_is_generated_behind_an_image_is_what_transformers_generates(
    name: str, grid: tuple[int, int] | None, tolerance: float, tmp_path: Path, books: Path
) -> None:
    """Positions, masks and deeper layers are right: each token is the most probable one behind those before it."""
    tiny = next(each for each in EYES if each.name == name)
    original = write_eyes(tiny, tmp_path / "m", books).double()
    made = run_export(
        ExportRequest(tmp_path / "m", "gguf-f32", mmproj=True, mmproj_type="f32", output=tmp_path / "m.gguf")
    )
    assert made.projector is not None
    image = Picture("image", pixels=picture(tiny))
    options = RuntimeOptions(n_ctx=256, threads=1, kv_type_k="f32", kv_type_v="f32", flash_attention="off")
    with LoadedModel(made.output, options) as model, Eyes(made.projector, model) as eyes:
        prompt = PicturePrompt(eyes, f"Once {eyes.marker} upon a time", [image])
        prompt.evaluate()
        first = np.ctypeslib.as_array(model._c.llama_get_logits_ith(model.context, -1), (model.n_vocab,)).copy()
        seen = np.concatenate(eyes.embeddings(image))
        told = [token.id for token in model.generate(prompt, SamplingOptions(temperature=0), 3)]
    ids = list(prompt)
    assert ids.count(-1) == len(seen)
    expected = logits_behind(original, ids, seen, grid)
    assert np.abs(first - expected).max() / expected.std() < tolerance
    for token in told:
        assert token == logits_behind(original, ids, seen, grid).argmax()
        ids.append(token)


def test_memory_that_nobody_wrote_does_not_reach_the_model(tmp_path: Path, books: Path) -> None:
    """What llama.cpp leaves as NaN between rows of Pixtral's patches is the token that stands there."""
    tiny = next(each for each in EYES if each.name == "pixtral")
    write_eyes(tiny, tmp_path / "m", books)
    made = run_export(ExportRequest(tmp_path / "m", "gguf-q8", mmproj=True, output=tmp_path / "m.gguf"))
    assert made.projector is not None
    with LoadedModel(made.output, RuntimeOptions(n_ctx=256, threads=1)) as model, Eyes(made.projector, model) as eyes:
        [rows] = eyes.embeddings(Picture("image", pixels=picture(tiny)))
        between = np.arange(len(rows)) % 9 == 8  # eight patches a row
        assert np.array_equal(np.unique(rows[between], axis=0), row_break(made.projector)[None])
        broken = rows.copy()
        broken[between] = np.nan
        assert np.array_equal(eyes._mended(broken), rows)


def test_embeddings_that_are_no_numbers_are_an_error(seeing: Seeing) -> None:
    with (
        LoadedModel(seeing.model, RuntimeOptions(n_ctx=256, threads=1)) as model,
        Eyes(seeing.projector, model) as eyes,
    ):
        rows = np.full((4, 64), np.nan, np.float32)
        with pytest.raises(ModelRuntimeError, match="gives NaN for 4 of 4 tokens"):
            eyes._mended(rows)


def test_an_archive_answers_about_an_image_and_another_image_changes_the_answer(
    seeing: Seeing, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for images in ([], *([path] for path in seeing.images), seeing.images):
        arguments = [part for path in images for part in ("--image", str(path))]
        options = ["--prompt", TEXT, "--temp", "0", "-n", "8", "--ctx", "256", "--json"]
        assert execute(["run", str(seeing.archive), *arguments, *options]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert len({answer["text"] for answer in answers}) == 4
    assert answers[0]["prompt_tokens"] < answers[1]["prompt_tokens"] < answers[3]["prompt_tokens"]
    assert all(answer["tokens"] for answer in answers)


def test_a_gguf_takes_the_projector_that_is_named_and_only_that(
    seeing: Seeing, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["run", str(seeing.model), "--prompt", TEXT, "--temp", "0", "-n", "4", "--image", str(seeing.images[0])]
    assert execute(run) == UsageError.exit_code  # though one lies beside it
    assert "has no projector: give --mmproj FILE" in capsys.readouterr().err
    assert execute([*run, "--mmproj", str(seeing.projector)]) == 0


def test_a_question_about_an_image_goes_through_the_chat_template(seeing: Seeing) -> None:
    with edgepack.load(seeing.archive, ctx=256) as model:
        plain = model.chat(TEXT, temperature=0, max_tokens=6)
        seen = model.chat(TEXT, temperature=0, max_tokens=6, images=[seeing.images[0].read_bytes()])
        again = model.chat(TEXT, temperature=0, max_tokens=6)
    assert seen.text != plain.text
    assert seen.prompt_tokens > plain.prompt_tokens
    assert again.text == plain.text  # nothing that was seen stays behind


def test_the_model_of_an_archive_may_stay_in_it_while_its_projector_is_installed(
    seeing: Seeing, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["run", str(seeing.archive), "--prompt", TEXT, "--temp", "0", "-n", "4", "--image", str(seeing.images[0])]
    texts = []
    for where in ("always", "never"):
        assert execute([*run, "--from-archive", where, "--json"]) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1]


def test_pack_puts_a_projector_into_the_same_archive(seeing: Seeing, tmp_path: Path) -> None:
    out = tmp_path / "both.edgepack"
    assert execute(["pack", str(seeing.model), "--mmproj", str(seeing.projector), "-o", str(out)]) == 0
    included = tmp_path / "included.edgepack"
    assert execute(["pack", str(seeing.model), "--include", str(seeing.projector), "-o", str(included)]) == 0
    for archive in (out, included):
        source = prepare(archive, progress=silent)
        assert source.adapters == ()
        found = projector_of(source)
        assert found is not None
        assert found.read_bytes() == seeing.projector.read_bytes()


def test_pack_tells_of_a_projector_that_only_lies_beside(
    seeing: Seeing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["pack", str(seeing.model), "-o", str(tmp_path / "x.edgepack")]) == 0
    assert f"{seeing.projector.name} lies beside it and stays out: --mmproj packs" in capsys.readouterr().err
    assert prepare(tmp_path / "x.edgepack", progress=silent).projector is None


def test_what_a_projector_takes_is_not_free_for_the_model(seeing: Seeing) -> None:
    source, wish = open_file(seeing.archive, OpenOptions(), silent)
    assert source.projector is not None
    assert wish.beside == source.projector.stat().st_size
    device, shape = running_device("cpu"), read_shape(source.header)
    rooms = [Fitter(shape, device, FitWish(beside=beside)).available for beside in (0, wish.beside)]
    assert rooms[0] - rooms[1] == wish.beside
    seen, blind = (edgepack.fit(file, device="gtx-1660", probe=False) for file in (seeing.archive, seeing.model))
    assert (seen.projector, blind.projector) == (wish.beside, 0)
    assert blind.available - seen.available == wish.beside


def test_unpack_restores_what_sees_beside_the_model(seeing: Seeing, tmp_path: Path) -> None:
    result = edgepack.unpack(seeing.archive, tmp_path / "model.gguf")
    assert result.beside == (tmp_path / "mmproj-TinyVLM-F16.gguf",)
    assert {tensor.name for tensor in read_header(result.beside[0]).tensors} == {
        tensor.name for tensor in read_header(seeing.projector).tensors
    }


def test_a_model_has_one_projector(seeing: Seeing, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(seeing.projector.read_bytes())
    with pytest.raises(UsageError, match="a model has one projector"):
        edgepack.pack(seeing.model, tmp_path / "x.edgepack", include=[other], projector=seeing.projector)
    assert not (tmp_path / "x.edgepack").exists()


def test_a_projector_made_for_another_model_is_refused_in_pack_and_run(
    seeing: Seeing, reading: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.edgepack"
    image = ["--image", str(seeing.images[0]), "--prompt", TEXT]
    for command in (
        ["pack", str(reading), "--mmproj", str(seeing.projector), "-o", str(out)],
        ["pack", str(reading), "--include", str(seeing.projector), "-o", str(out)],
        ["run", str(reading), "--mmproj", str(seeing.projector), *image],
    ):
        assert execute(command) == UsageError.exit_code
        told = capsys.readouterr().err
        assert "gives 64 numbers a token" in told
        assert "reads 128: it was made for another model" in told
    assert not out.exists()


def test_a_model_that_only_reads_does_not_look(
    seeing: Seeing, reading: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["run", str(reading), "--image", str(seeing.images[0]), "--prompt", TEXT]) == UsageError.exit_code
    assert "(llama) has no projector" in capsys.readouterr().err


def test_what_is_no_projector_is_refused_as_one(seeing: Seeing, reading: Path, tmp_path: Path) -> None:
    model = read_header(seeing.model)
    with pytest.raises(UsageError, match="no such file"):
        check_projector(tmp_path / "absent.gguf", model)
    with pytest.raises(UsageError, match="expected general.architecture 'clip', got 'llama'"):
        check_projector(reading, model)
    with pytest.raises(GGUFError):
        check_projector(seeing.images[0], model)
    deaf = changed(seeing.projector, tmp_path / "deaf.gguf", clip__has_vision_encoder=None)
    with pytest.raises(UsageError, match="expected one that sees"):
        check_projector(deaf, model)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_size", u32(0)),
        ("image_size", u32(1 << 30)),
        ("patch_size", u32(0)),
        ("patch_size", u32(64)),
        ("block_count", u32(1 << 20)),
        ("block_count", u32(3)),
        ("block_count", None),
        ("attention__head_count", u32(3)),
        ("embedding_length", Value(ValueType.STRING, "wide")),
        ("projector__scale_factor", u32(0)),
        ("preproc_image_size", u32(1 << 31)),
        ("image_std", None),
        ("attention__layer_norm_epsilon", Value(ValueType.FLOAT32, float("nan"))),
    ],
)
def test_numbers_that_would_crash_clip_cpp_are_refused(
    seeing: Seeing, tmp_path: Path, key: str, value: Value | None
) -> None:
    hostile = changed(seeing.projector, tmp_path / "p.gguf", **{f"clip__vision__{key}": value})
    with pytest.raises(GGUFError, match=key.replace("__", r"\.")):
        check_projector(hostile, read_header(seeing.model))


def test_a_type_that_clip_cpp_does_not_know_is_an_error_of_one_line(seeing: Seeing, tmp_path: Path) -> None:
    unknown = changed(seeing.projector, tmp_path / "p.gguf", clip__projector_type=Value(ValueType.STRING, "sonar"))
    with edgepack.load(seeing.model, ctx=256, projector=unknown) as model, pytest.raises(EdgepackError) as caught:
        model.complete(TEXT, images=[seeing.images[0]], max_tokens=1)
    assert "sonar" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_without_the_tokens_around_images_is_refused_where_llama_cpp_would_abort(
    seeing: Seeing, tmp_path: Path, books: Path
) -> None:
    tiny = replace(EYES[0].model, family="SmolVLM")
    folder = write_checkpoint(random_model(tiny), tmp_path / "m", books)  # with the plain tokenizer
    plain = run_export(ExportRequest(folder, "gguf-q8", output=tmp_path / "m.gguf")).output
    lacks = pytest.raises(UsageError, match="lacks the tokens that stand around images")
    with edgepack.load(plain, ctx=256, projector=seeing.projector) as model, lacks:
        model.complete(TEXT, images=[seeing.images[0]], max_tokens=1)


def test_files_that_are_no_images_are_refused_before_a_model_is_opened(
    seeing: Seeing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = seeing.images[0].read_bytes()
    wide = whole[:16] + struct.pack(">II", MAX_SIDE + 1, 1) + whole[24:]
    large = whole[:16] + struct.pack(">II", MAX_SIDE, MAX_SIDE) + whole[24:]
    for content, message in (
        (b"", "expected a PNG, JPEG, GIF or BMP file"),
        (b"just text", "expected a PNG, JPEG, GIF or BMP file"),
        (whole[:20], "expected a PNG, JPEG, GIF or BMP file"),
        (b"RIFF0000WAVEfmt ", "expected a PNG, JPEG, GIF or BMP file"),
        (b"\xff\xd8\xff\xe0\x00", "expected a PNG, JPEG, GIF or BMP file"),
        (wide, "expected sides of at most"),
        (large, "million pixels in all"),
    ):
        path = tmp_path / "image"
        path.write_bytes(content)
        assert execute(["run", str(seeing.archive), "--image", str(path), "--prompt", TEXT]) == UsageError.exit_code
        told = capsys.readouterr().err
        assert message in told
        assert len(told.strip().splitlines()) == 1
    assert (
        execute(["run", str(seeing.archive), "--image", str(tmp_path / "no"), "--prompt", TEXT]) == UsageError.exit_code
    )
    assert "no such file" in capsys.readouterr().err


def test_an_image_that_ends_early_is_an_error_of_one_line(seeing: Seeing) -> None:
    whole = seeing.images[0].read_bytes()
    with edgepack.load(seeing.archive, ctx=256) as model:
        with pytest.raises(UsageError, match="its pixels cannot be decoded"):
            model.complete(TEXT, images=[whole[: len(whole) // 2]], max_tokens=1)
        assert model.complete(TEXT, images=[whole], max_tokens=2, temperature=0).tokens  # the model is not worse for it


def test_images_need_a_question_and_a_context_that_holds_them(
    seeing: Seeing, capsys: pytest.CaptureFixture[str]
) -> None:
    image = ["--image", str(seeing.images[0])]
    assert execute(["run", str(seeing.archive), *image]) == UsageError.exit_code
    assert "--image: expected --prompt with it" in capsys.readouterr().err
    assert execute(["run", str(seeing.archive), *image, "--prompt", TEXT, "--ctx-shift"]) == UsageError.exit_code
    assert "images cannot be forgotten" in capsys.readouterr().err
    many = image * 12
    options = ["--prompt", TEXT, "--ctx", "256"]
    assert execute(["run", str(seeing.archive), *many, *options]) == UsageError.exit_code
    assert "of them of images; the context holds 256" in capsys.readouterr().err


def test_a_text_cannot_pretend_to_hold_an_image(seeing: Seeing) -> None:
    with edgepack.load(seeing.archive, ctx=256) as model:
        told = model.complete("<__media__> <__image__>", images=[seeing.images[0]], max_tokens=1)
    assert told.prompt_tokens > 20


JPEG = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xff\xc2\x00\x0b\x08\x00\x10\x00\x20\x03"


def test_sizes_are_read_of_every_kind_of_image() -> None:
    assert image_size(png(np.zeros((3, 5, 3), np.uint8))) == (5, 3)
    assert image_size(b"GIF89a" + struct.pack("<HH", 7, 9)) == (7, 9)
    assert image_size(b"BM" + b"\0" * 12 + struct.pack("<Iii", 40, 4, -6)) == (4, 6)
    assert image_size(JPEG) == (32, 16)


@given(
    st.binary(max_size=64), st.sampled_from((b"", b"\xff\xd8\xff", b"BM", b"GIF89a", b"\x89PNG\r\n\x1a\n", JPEG[:12]))
)
def test_no_bytes_make_reading_a_size_fail(tail: bytes, head: bytes) -> None:
    found = image_size(head + tail)
    assert found is None or len(found) == 2
    with contextlib.suppress(UsageError):
        picture_of(head + tail, "fuzz")


def test_a_picture_is_read_from_a_file_or_its_bytes(seeing: Seeing) -> None:
    path = seeing.images[0]
    assert read_picture(path).encoded == read_picture(str(path)).encoded == read_picture(path.read_bytes()).encoded
