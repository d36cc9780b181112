"""Documents become sections under their headings, whatever the format, in memory that does not grow with them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepack.documents.folder import READERS, Documents
from edgepack.documents.lines import lines
from edgepack.documents.sections import MOST_CHARACTERS, Section
from edgepack.errors import UsageError

MARKDOWN = """---
title: front matter is no text
---
# The harbour

It was *built* in `1734` by [Orin](https://example.org).
A second line.

## Ships

- one
- two

| name | year |
|---|---|
| Anne | 1801 |

```
# no heading
```

Setext
------
Under it.
"""
PAGE = """<html><head><title>Harbour</title><style>p { color: red }</style></head><body><nav>menu</nav>
<h1>Ships &amp; men</h1><p>First<br>line</p><script>var x = "<p>no</p>";</script>
<ul><li>one<li>two</ul><table><tr><td>Anne</td><td>1801</td></tr></table><h2>After</h2>last words"""


def read(folder: Path, name: str, content: str | bytes) -> list[Section]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(READERS[path.suffix](path, name))


def test_markdown_is_read_as_it_is_seen(tmp_path: Path) -> None:
    assert read(tmp_path, "a.md", MARKDOWN) == [
        Section("a.md", ("The harbour",), "It was built in 1734 by Orin. A second line."),
        Section("a.md", ("The harbour", "Ships"), "one\n\ntwo\n\nname | year\n\nAnne | 1801\n\n# no heading"),
        Section("a.md", ("The harbour", "Setext"), "Under it."),
    ]


def test_html_is_read_as_it_is_seen(tmp_path: Path) -> None:
    assert read(tmp_path, "a.html", PAGE) == [
        Section("a.html", ("Harbour", "Ships & men"), "First\n\nline\n\none\n\ntwo\n\nAnne | 1801"),
        Section("a.html", ("Harbour", "Ships & men", "After"), "last words"),
    ]


def test_html_is_read_in_the_encoding_that_it_states(tmp_path: Path) -> None:
    page = '<meta charset="iso-8859-1"><h1>Café</h1><p>déjà vu, encore</p>'.encode("latin-1")
    assert read(tmp_path, "a.htm", page)[0] == Section("a.htm", ("Café",), "déjà vu, encore")
    wide = "<h1>Wide</h1><p>sixteen bits a letter</p>".encode("utf-16")
    assert read(tmp_path, "b.htm", wide)[0].text == "sixteen bits a letter"
    assert read(tmp_path, "c.htm", b'<meta charset="zlib"><p>no encoding of text</p>')[0].text == "no encoding of text"


def test_plain_text_has_paragraphs_and_headings_that_look_like_it(tmp_path: Path) -> None:
    text = "THE HARBOUR\n\nIt was built\nin 1734.\n\nChapter 2\n\nShips came.\n\nNo heading this is.\n"
    assert read(tmp_path, "a.txt", text) == [
        Section("a.txt", ("THE HARBOUR",), "It was built in 1734."),
        Section("a.txt", ("Chapter 2",), "Ships came.\n\nNo heading this is."),
    ]


def one_page_pdf(text: str) -> bytes:
    """The smallest PDF that shows a line of text, by hand."""
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    body, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(body))
        body += b"%d 0 obj%s endobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(body)
    body += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    return body + b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)


def test_pdf_is_read_page_by_page(tmp_path: Path) -> None:
    assert read(tmp_path, "a.pdf", one_page_pdf("Built in 1734 by Orin")) == [
        Section("a.pdf", (), "Built in 1734 by Orin")
    ]


@pytest.mark.parametrize("content", [b"", b"no PDF", b"%PDF-1.4\ntrailer<</Root 9 0 R>>", one_page_pdf("x")[:120]])
def test_a_broken_pdf_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match=r"a\.pdf: expected a PDF"):
        read(tmp_path, "a.pdf", content)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 500), st.binary(min_size=1, max_size=6), st.sampled_from([".pdf", ".html", ".md", ".txt"]))
def test_damaged_documents_are_read_or_refused(tmp_path: Path, place: int, noise: bytes, kind: str) -> None:
    whole = {".pdf": one_page_pdf("a line of words"), ".html": PAGE.encode(), ".md": MARKDOWN.encode()}
    content = whole.get(kind, b"words\n\n" * 40)
    try:
        found = read(tmp_path, f"x{kind}", content[:place] + noise + content[place + len(noise) :])
    except UsageError:
        return
    assert all(section.text.strip() for section in found)


@pytest.mark.parametrize("kind", [".md", ".txt", ".html"])
def test_a_document_longer_than_what_is_held_of_it_comes_in_sections(tmp_path: Path, kind: str) -> None:
    read(tmp_path, f"first{kind}", "what a reader imports is not measured")
    path = tmp_path / f"long{kind}"
    with path.open("w") as stream:
        for number in range(600):
            line = f"{number} words that go on and on. " * 400
            stream.write(f"<p>{line}</p>" if kind == ".html" else f"{line}\n\n")
    size = path.stat().st_size
    tracemalloc.start()
    count = sum(len(section.text) for section in READERS[kind](path, "long"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 6_000_000
    assert count > 0.95 * size - 20_000
    assert peak < size


def test_a_line_without_end_comes_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("x" * (3 * MOST_CHARACTERS))
    assert max(map(len, lines(path))) <= MOST_CHARACTERS
    assert all(len(section.text) <= MOST_CHARACTERS for section in READERS[".txt"](path, "one.txt"))


def test_bytes_that_are_no_text_are_named_with_their_place(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a\.md: expected utf-8 text, byte 70000 is 0xff"):
        read(tmp_path, "a.md", b"y" * 70_000 + b"\xff")


def test_a_folder_gives_its_documents_in_order_and_says_what_it_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "b").mkdir(parents=True)
    (tmp_path / "secret.md").write_text("# Outside\n\nnot to be taught")
    (folder / "b/two.txt").write_text("the second document")
    (folder / "one.md").write_text("# One\n\nthe first document")
    (folder / "empty.md").write_text("")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.md").write_text("# Hidden\n\nnobody reads this")
    (folder / "link.md").symlink_to(tmp_path / "secret.md")
    (folder / "away").symlink_to(tmp_path)
    documents = Documents(folder)
    assert [section.document for section in documents.sections()] == ["one.md", "b/two.txt"]
    assert documents.passed_over == [
        "empty.md: no text in it", "link.md: a link out of the folder is not followed",
        "picture.png: no document of a kind that is read",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["", "picture.png", "empty.md"])
def test_a_folder_without_text_is_refused(tmp_path: Path, name: str) -> None:
    if name:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match="expected a folder with text"):
        list(Documents(tmp_path).sections())


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    for path, got in ((tmp_path / "absent", "nothing there"), (Path(__file__), "a file")):
        with pytest.raises(UsageError, match=f"expected a folder, got {got}"):
            Documents(path)
