"""Lines of a jsonl for `bigssl shards pack` that are answered questions (as in SQuAD) or tagged tokens (CoNLL)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigssl.data.errors import DataError
from bigssl.data.tools.classes import LABEL
from bigssl.data.tools.sources.base import Item, Keys, json_bytes
from bigssl.data.tools.sources.text import LineFile, Record, decoded, document_lines, line_file, parse_line

QUESTION = ("question", "context", "answers")
TOKENS = "tokens"
TAGS = (LABEL, "ner_tags", "tags", "pos_tags", "labels")  # what tags of tokens are called; the first is taken


class Spans(NamedTuple):
    """A line. tags: the field of the tags of its tokens; none of an answered question. meta: further fields for the
    json."""

    file: LineFile
    number: int
    offset: int
    length: int
    tags: str | None
    meta: tuple[str, ...]

    def load(self) -> dict[str, bytes]:
        """txt: the context of a question, or the tokens with a space between. json: {question, context, answers}, or
        {tokens, label}."""
        record = parse_line(f"{self.file.path}, line {self.number}",
                            self.file.text(self.offset, self.length, self.number))  # fmt: skip
        facts = {name: record.value(name) for name in self.meta}
        if self.tags is None:
            facts |= answered(record)
            return {"txt": facts["context"].encode(), "json": json_bytes(facts)}
        facts |= tagged(record, self.tags)
        return {"txt": " ".join(facts[TOKENS]).encode(), "json": json_bytes(facts)}

    def stamp(self) -> object:
        """Which version of the file, and what is taken from it."""
        return [self.file.version, self.offset, self.tags, self.meta]


def answered(record: Record) -> dict[str, Any]:
    """{question, context, answers: {text: [...], answer_start: [...]}} of a line; without answers it has none. Raises
    DataError for what is none of these, and where an answer does not stand where it begins (counted in characters)."""
    question, context, answers = (record.value(name) for name in QUESTION)
    texts, starts = (answers.get(name) if isinstance(answers, dict) else None for name in ("text", "answer_start"))
    if not (isinstance(question, str) and isinstance(context, str) and isinstance(texts, list)
            and isinstance(starts, list) and len(texts) == len(starts)):  # fmt: skip
        raise DataError(f"{record.where}: question and context must be texts, answers {{text: [...], answer_start: "
                        "[...]}} with a start for each text")  # fmt: skip
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(start, int) or start < 0 or context[start : start + len(str(text))] != text:
            there = context[start : start + 30] if isinstance(start, int) else None
            raise DataError(f"{record.where}: answer {text!r} does not stand at answer_start {start!r} of the context, "
                            f"where {there!r} is; starts are counted in characters from 0")  # fmt: skip
    return {"question": question, "context": context, "answers": {"text": texts, "answer_start": starts}}


def tagged(record: Record, tags: str) -> dict[str, Any]:
    """{tokens, label}: lists of one length. Raises DataError for others."""
    tokens, labels = record.value(TOKENS), record.value(tags)
    if not (isinstance(tokens, list) and isinstance(labels, list) and len(tokens) == len(labels)
            and all(isinstance(token, str) for token in tokens)
            and all(isinstance(label, str | int) and not isinstance(label, bool) for label in labels)):  # fmt: skip
        sizes = [len(each) if isinstance(each, list) else type(each).__name__ for each in (tokens, labels)]
        raise DataError(f"{record.where}: {TOKENS} and {tags} must be lists of one length, of texts and of names or "
                        f"numbers; they are {sizes[0]} and {sizes[1]}")  # fmt: skip
    return {TOKENS: tokens, LABEL: labels}


def spans_of(path: Path, label: str | None = None) -> tuple[bool, str | None]:
    """(whether the first line is a question with answers or tokens with tags, the field of the tags). label: what that
    has to be. Raises DataError."""
    line = next(document_lines(path), None)
    if line is None:
        return False, None
    where = f"{path}, line {line.number}"
    record = parse_line(where, decoded(line.data, where))
    if label is None and all(name in record for name in QUESTION):
        return True, None
    tags = next((name for name in (TAGS if label is None else (label,)) if isinstance(record.get(name), list)), None)
    return isinstance(record.get(TOKENS), list) and tags is not None, tags


def from_spans(
    path: Path, stem: str, tags: str | None, *, key: str | None = None, group: str | None = None,
    meta: Sequence[str] = (),
) -> Iterator[Item]:  # fmt: skip
    """Each line is a question with its answers, or a list of tokens with their `tags`. key, group, meta: as of
    `from_jsonl`; without a group, questions of one context are one. Raises DataError naming the line."""
    file, keys = line_file(path), Keys()
    for count, line in enumerate(document_lines(path)):
        where = f"{path}, line {line.number}"
        record = parse_line(where, decoded(line.data, where))
        facts = answered(record) if tags is None else tagged(record, tags)
        name = record.fill(key) if key else f"{stem}-{count:06d}"
        if key:
            keys.add(name, str(path), line.number)
        together = record.fill(group) if group else facts.get("context", name)
        document = Spans(file, line.number, line.offset, len(line.data), tags, tuple(meta))
        yield Item(name, together, document.load, document.stamp, facts.get(LABEL))
