"""What `verify` finds where shards, sidecars and manifest are sound by themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bigssl.data.shards.index import Row, build_index, scan
from bigssl.data.shards.leftout import HIDDEN, LeftOut
from bigssl.data.shards.tarwalk import compress
from bigssl.data.tools.verify import verify

from ..shards.test_tar_contents import tar, write

OTHER_RULES: dict[str, tuple[Callable[[list[Row]], list[Row]], str, str]] = {
    "left out": (lambda rows: [rows[0], *rows[2:]], "__s", "1 samples are not in the index, the first '__s'; run"),
    "taken": (
        lambda rows: [*rows, rows[0]._replace(key="z")], "z", "1 samples of the index are not in the shard, the first"
    ),
    "a field left out": (
        lambda rows: [rows[0]._replace(members={"txt": rows[0].members["txt"]}), *rows[1:]],
        "a", "1 samples have other bytes or fields than in the index, the first 'a'; run",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHER_RULES)
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_an_index_that_was_built_by_other_rules_is_found(
    tmp_path: Path, kind: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sidecar, manifest and shard agree on every checksum; what a run would read is still not what the shard holds."""
    change, key, cause = OTHER_RULES[kind]
    names = ["a.txt", "a.cls", "__s.txt", "__s.cls", ".hidden.txt", "b.txt", "b.cls"]
    path = write(tmp_path / "x.tar", tar(names))
    if suffix == ".tar.gz":
        compress(Path(path), tmp_path / "x.tar.gz", [row.origin for row in scan(path)[0]])
        Path(path).unlink()
        path += ".gz"
    rows, *facts = scan(path)
    with monkeypatch.context() as before:
        before.setattr("bigssl.data.shards.index.scan", lambda *_: (change(rows), *facts))
        build_index([path], tmp_path)
    for jobs in (1, 2):
        left_out = LeftOut()
        found = [f for f in verify(str(tmp_path), jobs, left_out) if "the index" in f.cause]
        assert [(f.shard, f.key) for f in found] == [(Path(path).name, key)]
        assert cause in found[0].cause
        assert left_out.as_json() == {HIDDEN: [1, [".hidden.txt"]]}
    build_index([path], tmp_path)
    assert not list(verify(str(tmp_path)))
