"""Documents of text files and jsonl: every line that is not blank, with what was asked for, errors with their line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.config import limits
from bigssl.data.errors import DataError
from bigssl.data.tools.sources.text import document_lines, from_jsonl, from_lines


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\ufeff"), max_size=12)),
    st.sampled_from(["\n", "\r\n"]),
)
def test_lines_are_those_of_the_file(tmp_path_factory, texts: list[str], end: str) -> None:
    path = tmp_path_factory.mktemp("lines") / "f.txt"
    path.write_bytes(end.join(texts).encode())
    expected = [(n, text.encode()) for n, text in enumerate(texts, 1) if text.encode().strip()]
    found = list(document_lines(path))
    assert [(line.number, line.data) for line in found] == expected
    whole = path.read_bytes()
    assert all(whole[line.offset :].startswith(line.data) for line in found)


def test_a_document_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "f.txt", "eins\n\n  \nzwei drei\r\ngröße".encode())
    found = list(from_lines(path, "sub/f"))
    assert [item.key for item in found] == ["sub/f-000000", "sub/f-000001", "sub/f-000002"]
    assert [item.load() for item in found] == [{"txt": b"eins"}, {"txt": b"zwei drei"}, {"txt": "größe".encode()}]


def jsonl(path: Path, *records: object) -> Path:
    return write(path, b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records))


def test_jsonl_with_templates(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "f.jsonl",
        {"id": 7, "title": "Über", "text": "a\nb", "year": 1999, "who": {"x": [1]}},
        {"id": "k8", "title": "B", "text": "c", "year": None, "who": "y"},
    )
    numbered = list(from_jsonl(path, "f"))
    assert [(item.key, item.group, item.load()) for item in numbered] == [
        ("f-000000", "f-000000", {"txt": b"a\nb"}),
        ("f-000001", "f-000001", {"txt": b"c"}),
    ]
    options = {"text": "{title}: {text}", "key": "d/{id}", "group": "{title}", "meta": ["year", "who"]}
    named = list(from_jsonl(path, "f", **options))
    assert [(item.key, item.group) for item in named] == [("d/7", "Über"), ("d/k8", "B")]
    assert named[0].load() == {"txt": "Über: a\nb".encode(), "json": b'{"who":{"x":[1]},"year":1999}'}
    assert named[1].load()["json"] == b'{"who":"y","year":null}'


@pytest.mark.parametrize(
    ("line", "options", "cause"),
    [
        (b"[" * 100_000, {}, "not JSON"),
        (b'{"text": "x"}', {"meta": ["year"]}, "no field 'year'; it has text"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: bytes, options: dict, cause: str) -> None:
    path = write(tmp_path / "f.jsonl", b'{"text": "sound", "year": 1}\n\n' + line + b"\n")
    first, bad = from_jsonl(path, "f", **options)
    assert first.load()["txt"] == b"sound"
    with pytest.raises(DataError, match=rf"f\.jsonl, line 3: {cause}"):
        bad.load()


def test_bad_keys_are_named_at_once(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "f.jsonl", {"text": "x", "id": 1}, {"text": "y"})
    with pytest.raises(DataError, match=r"f\.jsonl, line 2: no field 'id'; it has text"):
        list(from_jsonl(path, "f", key="{id}"))


def test_stamps_tell_versions_and_options_apart(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "f.jsonl", {"text": "x", "id": 1})

    def stamp(**options: str) -> object:
        (item,) = from_jsonl(path, "f", **options)
        assert item.stamp is not None
        return item.stamp()

    before = stamp()
    assert before == stamp() != stamp(text="{id}")
    jsonl(path, {"text": "x", "id": 12})
    assert stamp() != before


def test_endless_lines_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "f.txt", b"short\n" + b"x" * 100)
    small = limits.applied(limits.Limits(member_bytes=50))
    with small, pytest.raises(DataError, match=r"f\.txt, line 2 refused: .*member_bytes"):
        list(document_lines(path))
