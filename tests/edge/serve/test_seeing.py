"""A served model that sees: the projector of its archive answers about images that come with requests."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest
from references.tiny_images import png
from references.tiny_projectors import EYES, picture, write_eyes
from serving import ask, chat, start

from edgepack.pipeline.export import run_export
from edgepack.pipeline.request import ExportRequest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from serving import Server

pytestmark = pytest.mark.slow
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory, books: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("seeing")
    write_eyes(EYES[0], folder / "TinyVLM", books)
    (folder / "TinyVLM/chat_template.jinja").write_text(TEMPLATE)
    archive = run_export(ExportRequest(folder / "TinyVLM", "gguf-q8", mmproj=True, output=folder / "m.edgepack")).output
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_CACHE", str(folder / "cache"))
        running = start(archive, "--ctx", "256", "--parallel", "1")
    yield running
    running.stop()


def question(*images: bytes) -> dict[str, Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(image).decode()}"}}
        for image in images
    ]
    content: Any = [*parts, {"type": "text", "text": "Once upon a time"}]
    return chat(messages=[{"role": "user", "content": content}])


def test_images_of_a_request_change_the_answer(seeing: Server) -> None:
    images = [png(picture(EYES[0], seed=seed)) for seed in range(2)]
    told = []
    for asked in ((), images[:1], images[1:]):
        status, answer = ask(seeing, "/v1/chat/completions", question(*asked))
        assert status == 200, answer
        told.append((answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens"]))
    assert len({text for text, _tokens in told}) == 3
    assert told[0][1] < told[1][1] == told[2][1]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png;base64,AAAA", "expected a PNG, JPEG, GIF or BMP"),
        ("data:image/png;base64,!", "in base64"),
        ("data:image/png,abc", "in base64"),
        ("http://localhost/x.png", "opens no address"),
    ],
)
def test_what_is_no_image_is_a_400_that_names_the_part_and_the_server_lives_on(
    seeing: Server, url: str, message: str
) -> None:
    body = question()
    body["messages"][0]["content"].insert(0, {"type": "image_url", "image_url": {"url": url}})
    status, answer = ask(seeing, "/v1/chat/completions", body)
    assert status == 400
    assert message in answer["error"]["message"]
    assert "messages[0].content[0]" in answer["error"]["message"]
    assert ask(seeing, "/v1/chat/completions", question())[0] == 200


def test_a_huge_image_is_refused_by_its_size(seeing: Server) -> None:
    whole = png(picture(EYES[0]))
    huge = whole[:16] + b"\0\1\0\0\0\1\0\0" + whole[24:]
    status, answer = ask(seeing, "/v1/chat/completions", question(huge))
    assert status == 400
    assert "65536 x 65536" in answer["error"]["message"]
