"""`bigssl shards pack|split` of what a newcomer has: no option where one answer is right, a question where two may be,
one line for what cannot be."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from packing import Pack, labels, read
from PIL import Image
from written import fill

from bigssl.cli.main import _app, main


def jpg(grey: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), grey).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Pack:
    return Pack(tmp_path, capsys)


def pictures(root: Path, *names: str) -> Path:
    return fill(root, {name: jpg(number) for number, name in enumerate(names)})


def table(root: Path, *rows: str, name: str = "t.csv") -> Path:
    return fill(root, {name: "".join(f"{row}\n" for row in rows).encode()}) / name


def test_a_table_of_pictures_and_labels_packs_as_it_is(tmp_path: Path, pack: Pack) -> None:
    source = table(pictures(tmp_path, "p/a.jpg", "p/b.jpg"), "id,file,label", "7,p/a.jpg,cat", "8,p/b.jpg,")
    samples, said = pack(source)
    assert samples == {"p/a": {"jpg": jpg(0), "json": b'{"label":"cat"}'}, "p/b": {"jpg": jpg(1)}}
    assert said.splitlines() == [
        f"pictures: --image '{{file}}', the only ones that are named and below {tmp_path}",
        "text of a sample: no column `caption`, so no txt; --text COLUMN takes another",
        "keys: the paths of the pictures; --key names others",
        "label: 1 classes (cat 1), 1 samples without; --labels none leaves them out",
    ]
    assert labels(pack(source, "--labels", "none")[0]) == {"p/a": None, "p/b": None}
    assert labels(pack(source, "--label", "id")[0]) == {"p/a": "7", "p/b": "8"}


@pytest.mark.parametrize(
    ("cells", "template"),
    [
        (("x.jpg", "y.jpg"), "pics/{name}"),
        (("x", "y"), "pics/{name}.jpg"),
        (("pics/x", "pics/y"), "{name}.jpg"),
    ],
)  # fmt: skip
def test_names_without_folder_or_extension_are_found(tmp_path: Path, pack: Pack, cells: tuple, template: str) -> None:
    source = table(pictures(tmp_path, "pics/x.jpg", "pics/y.jpg"), "name,class", *(f"{cell},c" for cell in cells))
    samples, said = pack(source)
    assert samples == {"pics/x": {"jpg": jpg(0)}, "pics/y": {"jpg": jpg(1)}}
    assert f"--image '{template}'" in said
    assert "column 'class' may hold classes: --label class puts it into the json as `label`" in said


def test_a_picture_with_several_captions_is_on_one_side_of_a_split(tmp_path: Path, pack: Pack) -> None:
    names = [f"{number}.jpg" for number in range(30)]
    rows = [f"{name},says {again}" for name in names for again in range(3)]
    pack(table(pictures(tmp_path, *names), "file,caption", *rows), "--split", "val=0.3")
    sides = [{fields["jpg"] for fields in read(pack.out / part).values()} for part in ("train", "val")]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 30
    assert sorted(read(pack.out / "val") | read(pack.out / "train")) == [f"t-{number:06d}" for number in range(90)]


def test_what_a_table_means_is_asked_with_a_command_that_fits(tmp_path: Path, pack: Pack) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg", "m/a.jpg", "m/b.jpg")
    two = table(tmp_path, "picture,mask", "a.jpg,m/a.jpg", "b.jpg,m/b.jpg", name="two.csv")
    assert "which pictures are meant: --image '{picture}' or --image '{mask}'?" in pack.refused(two)
    samples, _ = pack(two, "--image", "{picture}", "--image", "mask={mask}")
    assert {key: json.loads(fields["json"]) for key, fields in samples.items()} == {
        "a": {"variant": "0"}, "b": {"variant": "0"}, "m/a": {"variant": "mask"}, "m/b": {"variant": "mask"},
    }  # fmt: skip
    far = table(tmp_path / "far", "file,caption", "z.jpg,a word")
    assert "pictures of column 'file', e.g. 'z.jpg', are not below" in (line := pack.refused(far)) and "--root" in line
    assert "--root" in pack.refused(far, "--text", "caption")
    texts = table(tmp_path, "stars,the review", "5,很好", "1,不好", name="texts.csv")
    line = pack.refused(texts)
    assert "it has stars, the review" in line and f"`bigssl shards pack {texts} {pack.out} --text 'the review'`" in line
    assert pack(texts, "--text", "the review", "--label", "stars")[0] == {
        "texts-000000": {"txt": "很好".encode(), "json": b'{"label":"5"}'},
        "texts-000001": {"txt": "不好".encode(), "json": b'{"label":"1"}'},
    }
    numbers = table(tmp_path, "date,x,y", "2020-01-01,1,2", "2020-01-02,3,4", name="numbers.csv")
    assert f"`bigssl shards pack {numbers} {pack.out} --as series --window 96`" in pack.refused(numbers)
    assert "no column 'z'; it has mask, picture" in pack.refused(two, "--image", "{z}")
    assert "no rows below a header" in pack.refused(table(tmp_path, "a,b", name="empty.csv"))


def test_what_is_nearly_a_source_is_told_what_it_lacks(
    tmp_path: Path, pack: Pack, capsys: pytest.CaptureFixture[str]
) -> None:
    parted = table(tmp_path, "file;label", "a,b.jpg;x", name="semi.csv")
    for options in ([], ["--as", "series"]):
        line = pack.refused(parted, *options)
        assert "line 1: one column, 'file;label': its cells are separated by semicolons (';')" in line
    urls = table(tmp_path, "id,url", "1,https://x.org/a.jpg", "2,https://x.org/b.jpg", name="urls.csv")
    assert "column 'url' holds URLs of pictures, e.g. 'https://x.org/a.jpg'; download them" in pack.refused(urls)
    (tmp_path / "t.json").write_text('[{"text": "a"}]')
    assert f"`jq -c '.[]' {tmp_path}/t.json > {tmp_path}/t.jsonl`" in pack.refused(tmp_path / "t.json")
    pack(pictures(tmp_path / "s", *(f"{n}.jpg" for n in range(20))), "--split", "val=0.3")
    capsys.readouterr()
    assert main(["shards", "split", str(pack.out), str(tmp_path / "again")]) == 2
    assert f"it has parts with one; allowed: {pack.out}/train, {pack.out}/val" in capsys.readouterr().err


def test_class_folders_give_labels_and_say_so(tmp_path: Path, pack: Pack) -> None:
    own = {"cat/1.json": b'{"n": 1.50e3}', "cat/2.json": b'\xef\xbb\xbf{ }', "dog/1.json": b'{"label": "hound"}',
           "dog/2.json": b"[1]"}  # fmt: skip
    names = ["0.jpg", *(f"{key}/{n}.jpg" for key in ("cat", "dog") for n in "123")]
    source = fill(tmp_path / "s", dict.fromkeys(names, jpg()))
    samples, said = pack(source)
    assert labels(samples) == {"0": None} | {f"{key}/{n}": key for key in ("cat", "dog") for n in "123"}
    assert "label: 2 classes (cat 3, dog 3), 1 samples without; --labels none leaves them out\n" in said
    bare, said = pack(source, "--labels", "none")
    assert set(labels(bare).values()) == {None} and all(set(fields) == {"jpg"} for fields in bare.values())
    assert said == ""
    samples, _ = pack(fill(source, own))
    assert {key: fields["json"] for key, fields in samples.items() if f"{key}.json" in own} == {
        "cat/1": b'{"label":"cat","n": 1.50e3}',  # every byte of theirs stays
        "cat/2": b'\xef\xbb\xbf{"label":"cat" }',
        "dog/1": b'{"label": "hound"}',
        "dog/2": b"[1]",
    }


def test_one_folder_or_none_is_no_class(tmp_path: Path, pack: Pack) -> None:
    for names in (("a.jpg", "b.jpg"), ("p/a.jpg", "p/b.jpg"), ("a.jpg", "p/b.jpg"), ("x/p/a.jpg", "x/p/b.jpg")):
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        samples, said = pack(pictures(tmp_path / "s", *names))
        assert set(labels(samples).values()) == {None} and said == ""
    joined, _ = pack(fill(tmp_path / "j", {"i/a.jpg": jpg(), "t/a.txt": b"x", "i/b.jpg": jpg(), "t/b.txt": b"y"}),
                     "--pattern", "(.*/)?(?P<key>[^/]+)")  # fmt: skip
    assert labels(joined) == {"a": None, "b": None}
    patterned, _ = pack(pictures(tmp_path / "d", "cat/a.1.jpg", "dog/b.1.jpg"), "--pattern", "(?P<key>.+)")
    assert labels(patterned) == {"cat/a_1": "cat", "dog/b_1": "dog"}
    pattern = "(?P<key>[a-z]+/(?P<label>.).*)"
    assert labels(pack(tmp_path / "d", "--pattern", pattern)[0]) == {"cat/a_1": "a", "dog/b_1": "b"}


def test_of_nested_folders_the_first_that_differ_are_the_classes(tmp_path: Path, pack: Pack) -> None:
    names = [f"{part}/{kind}/{size}/1.jpg" for part in ("train", "val") for kind in ("cat", "dog")
             for size in ("small", "big")]  # fmt: skip
    source = pictures(tmp_path / "s", *names, "train/cat/2.jpg")
    samples, said = pack(source)
    assert {key: key.split("/")[1] for key in samples} == labels(samples)
    (pattern,) = re.findall(r"for those around it \(big, small\): --pattern '(.*?)'", said)
    assert {key: key.split("/")[-2] for key in samples} == labels(pack(source, "--pattern", pattern)[0])
    alike = pictures(tmp_path / "a", *(f"data/{kind}/images/{n}.jpg" for kind in ("cat", "dog") for n in "12"))
    samples, said = pack(alike)
    assert {key: key.split("/")[1] for key in samples} == labels(samples) and "--pattern" not in said


def test_folders_that_may_be_one_sample_are_asked(tmp_path: Path, pack: Pack) -> None:
    files = {f"images/{n}.jpg": jpg(n) for n in range(3)} | {f"texts/{n}.txt": b"t" for n in range(3)}
    source = fill(tmp_path / "s", files)
    line = pack.refused(source)
    assert "folders 'images' and 'texts' hold files of the same names ('0')" in line
    joined, apart = re.findall(r"--pattern '(.*?)'", line)
    assert pack(source, "--pattern", joined)[0] == {str(n): {"jpg": jpg(n), "txt": b"t"} for n in range(3)}
    assert len(pack(source, "--pattern", apart)[0]) == 6


def test_parts_that_are_there_are_never_mixed_unsaid(tmp_path: Path, pack: Pack) -> None:
    names = [f"data/{part}/{kind}/{n}.jpg" for part in ("train", "valid") for kind in ("cat", "dog") for n in range(3)]
    source = pictures(tmp_path / "s", *names)
    samples, said = pack(source)
    assert Counter(labels(samples).values()) == {"cat": 6, "dog": 6}
    commands = [f"`bigssl shards pack {source}/data/{a} {pack.out}/{b}`" for a, b in (("train",) * 2, ("valid", "val"))]
    assert f"train, valid of {source} are packed as one" in said and all(command in said for command in commands)
    line = pack.refused(source, "--split", "val=0.5")
    assert "which --split would mix" in line and all(command in line for command in commands)
    shutil.rmtree(pack.out.parent)
    for command in commands:
        assert main(command.strip("`").split()[1:]) == 0
    assert {part: len(read(pack.out / part)) for part in ("train", "val")} == {"train": 6, "val": 6}
    flat = pictures(tmp_path / "f", "train/1.jpg", "val/2.jpg")  # they are parts and no classes
    samples, said = pack(flat)
    assert labels(samples) == {"train/1": None, "val/2": None} and "are packed as one" in said
    lines = fill(tmp_path / "l", {"train.jsonl": b'{"text": "a"}\n', "test.jsonl": b'{"text": "b"}\n'})
    line = pack.refused(lines, "--as", "jsonl", "--split", "val=0.5")
    assert f"`bigssl shards pack {lines}/train.jsonl {pack.out}/train --as jsonl`" in line


def test_a_text_file_per_class_is_asked(tmp_path: Path, pack: Pack) -> None:
    for lines, exit_code in ((1001, 2), (200, 0), (5, 0)):
        source = fill(tmp_path / str(lines), {f"{name}.txt": b"a document\n" * lines for name in ("cat", "dog")})
        code, said = pack.run(source)
        assert code == exit_code
        assert ("--as lines" in said) == (lines > 100)
    source = tmp_path / "1001"
    assert len(pack(source, "--as", "files")[0]) == 2
    samples, said = pack(source, "--as", "lines")
    assert Counter(labels(samples).values()) == {"cat": 1001, "dog": 1001}
    assert samples["cat-000000"]["txt"] == b"a document"
    assert "label: 2 classes (cat 1001, dog 1001)" in said
    parts = fill(tmp_path / "p", {f"part-{n}.txt": b"a\nb\n" for n in range(3)})
    assert set(labels(pack(parts, "--as", "lines")[0]).values()) == {None}  # parts of one text are no classes
    classes = fill(tmp_path / "c", {f"{key}/{n}.txt": b"a\nb\n" for key in ("neg", "pos") for n in range(3)})
    assert Counter(labels(pack(classes, "--as", "lines")[0]).values()) == {"neg": 6, "pos": 6}


def test_files_that_nothing_reads_are_asked(tmp_path: Path, pack: Pack) -> None:
    source = table(pictures(tmp_path / "s", "a.jpg", "b.jpg"), "file,label", "a.jpg,x", "b.jpg,y").parent
    assert f"`bigssl shards pack {source}/t.csv {pack.out}`" in pack.refused(source)
    assert len(pack(source, "--as", "files")[0]) == 3
    assert "--as series reads a row per time" in pack.refused(fill(tmp_path / "c", {"a.csv": b"x\n1\n"}))
    assert "--as series reads a row per time" in pack.refused(fill(tmp_path / "p", {"a.parquet": b"PAR1"}))
    assert "--as jsonl reads their lines" in pack.refused(fill(tmp_path / "j", {"a.jsonl": b'{"text": "a"}\n'}))


def test_jsonl_of_any_field_names(tmp_path: Path, pack: Pack) -> None:
    def write(name: str, *records: dict) -> Path:
        (tmp_path / name).write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        return tmp_path / name

    some = write("some.jsonl", {"review": "很好", "label": 1}, {"review": "不好", "label": None}, {"review": "行"})
    samples, said = pack(some)
    assert [fields["txt"].decode() for _, fields in sorted(samples.items())] == ["很好", "不好", "行"]
    assert [label for _, label in sorted(labels(samples).items())] == [1, None, None]
    assert "text of a sample: the field 'review', the only one of texts" in said
    assert "label: 1 classes (1 1), 2 samples without" in said
    two = write("two.jsonl", {"name": "A", "review": "很好", "stars": 5})
    line = pack.refused(two)
    assert "no field 'text'; it has name, review, stars; name one, e.g. --text review" in line
    samples, said = pack(two, "--text", "review", "--label", "stars", "--meta", "name")
    assert samples == {"two-000000": {"txt": "很好".encode(), "json": b'{"label":5,"name":"A"}'}}
    assert "no field 'grade'; it has name, review, stars" in pack.refused(two, "--text", "review", "--label", "grade")
    assert "field 'label' is {\"a\": 1}; a label is a text or a number, or a list of them" in pack.refused(
        write("l.jsonl", {"text": "a", "label": {"a": 1}})
    )


def sensors(path: Path, rows: int = 200, extra: str = "") -> Path:
    head = f"date,x,y{',' if extra else ''}{extra}\n"
    times = [f"2016-07-{1 + n // 24:02d} {n % 24:02d}:00:00" for n in range(rows)]
    lines = [f"{time},{n * n % 97},{n % 7}" + (f",s{n * 2 // rows}" if extra else "") for n, time in enumerate(times)]
    path.write_text(head + "\n".join(lines) + "\n")
    return path


def test_dates_beside_numbers_are_the_time(tmp_path: Path, pack: Pack) -> None:
    source = sensors(tmp_path / "s.csv")
    samples, said = pack(source, "--as", "series")
    assert np.load(io.BytesIO(samples["s"]["npy"])).shape == (200, 2)
    assert said == (
        "time of a row: column 'date' (iso); --time none takes rows as they come\n"
        "time: a row every 3600 s in 1 series, 200 rows\n"
    )
    assert json.loads(samples["s"]["json"]) == {
        "series": "s", "time": "2016-07-01T00:00:00", "step": 3600}  # fmt: skip
    samples, said = pack(source, "--as", "series", "--time", "none")
    assert said == "left out: columns that are no numbers (date); --columns says which to take\n"
    assert set(samples["s"]) == {"npy"}
    assert "line 2: could not convert string to float" in pack.refused(source, "--as", "series", "--columns", "date,x")
    clock = table(tmp_path, "t,x", "0,3", "10,1", "20,2", name="clock.csv")
    said = pack(clock, "--as", "series")[1]
    assert "column 't' rises by the same step in each row, as a clock does; --columns x leaves it out" in said
    bare = table(tmp_path, "2020-01-01,3", "2020-01-02,4", name="bare.csv")
    assert "line 1: a row, not the names of the columns" in pack.refused(bare, "--as", "series")
    words = table(tmp_path, "a,b", "x,y", name="words.csv")
    assert "no column of numbers, so no series; it has a, b" in pack.refused(words, "--as", "series")
    index = table(tmp_path, ",a,b", "0,1,2", name="index.csv")
    assert "column '' has no name of its own; rename it, or give --columns a,b" in pack.refused(index, "--as", "series")


def held(folder: Path) -> dict[str, set[int]]:
    """Rows by series that the windows of a dataset hold, as their json says and their numbers confirm."""
    found: dict[str, set[int]] = {}
    for fields in read(folder).values():
        facts = json.loads(fields["json"])
        rows = range(facts["start"], facts["start"] + facts["rows"])
        found.setdefault(facts["series"], set()).update(rows)
        first = 100 if facts["series"].endswith("s1") else 0
        expected = [[(row + first) ** 2 % 97, (row + first) % 7] for row in rows]
        np.testing.assert_array_equal(np.load(io.BytesIO(fields["npy"])), np.array(expected, np.float32))
    return found


def test_windows_are_split_by_time(tmp_path: Path, pack: Pack, capsys: pytest.CaptureFixture[str]) -> None:
    source = sensors(tmp_path / "s.csv")
    windows = ("--as", "series", "--window", 16, "--stride", 3)
    said = pack(source, *windows, "--split", "val=0.2")[1]
    assert "split by time: val is the last 0.2 of 1 series (from row 160), no row on both sides\n" in said
    assert held(pack.out / "train") == {"s": set(range(160))} and held(pack.out / "val") == {"s": set(range(160, 200))}
    pack(source, *windows)
    other = tmp_path / "parts"
    assert main(["shards", "split", str(pack.out), str(other), "--part", "val=0.2"]) == 0
    assert "(from row 162), no row on both sides; left out: 5 samples with rows of both" in capsys.readouterr().err
    assert held(other / "train") == {"s": set(range(160))} and held(other / "val") == {"s": set(range(162, 200))}
    assert "one series is one sample; --window ROWS" in pack.refused(source, "--as", "series", "--split", "val=0.2")
    line = pack.refused(source, *windows, "--split", "val=0.01")
    assert "it is 2 of 200 rows, fewer than a window of 16; choose val=0.08 or more" in line
    assert "--stride 20 is more than --window 16: rows between windows are left out" in pack(
        source, "--as", "series", "--window", 16, "--stride", 20
    )[1]


def test_several_series_are_split_each_by_time_or_as_wholes(tmp_path: Path, pack: Pack) -> None:
    source = sensors(tmp_path / "s.csv", extra="who")
    windows = ("--as", "series", "--window", 10, "--by", "who", "--split", "val=0.3")
    assert "the last 0.3 of 2 series, no row on both sides" in pack(source, *windows)[1]
    assert held(pack.out / "train") == {f"s-s{n}": set(range(70)) for n in range(2)}
    assert held(pack.out / "val") == {f"s-s{n}": set(range(70, 100)) for n in range(2)}
    pack(source, *windows, "--split-by", "series", "--seed", 1)
    sides = [held(pack.out / part) for part in ("train", "val")]
    assert sorted(len(side) for side in sides) == [1, 1] and set(sides[0]) != set(sides[1])
    pack(source, *windows[:-2])
    parts = tmp_path / "wholes"
    by_series = ["--by", "series", "--part", "val=0.3", "--seed", "1"]
    assert main(["shards", "split", str(pack.out), str(parts), *by_series]) == 0
    assert [held(parts / part) for part in ("train", "val")] == sides
    assert "--split-by series: has no effect without --split and --window" in pack.refused(
        source, "--as", "series", "--split-by", "series"
    )


def test_windows_that_say_nothing_of_their_rows_are_not_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they were packed before, from which nobody can tell which rows they share."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 1), np.float32))
    fill(tmp_path / "s", {f"long-{n:06d}.npy": buffer.getvalue() for n in range(9)})
    assert main(["shards", "pack", str(tmp_path / "s"), str(tmp_path / "d"), "--jobs", "1"]) == 0
    capsys.readouterr()
    split = ["shards", "split", str(tmp_path / "d"), str(tmp_path / "o"), "--part", "val=0.3"]
    assert main(split) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "samples long-NUMBER may be windows of one series" in line and "pack the csv anew" in line
    assert not (tmp_path / "o").exists()
    assert main([*split, "--by", "key"]) == 0
    assert len(read(tmp_path / "o/train") | read(tmp_path / "o/val")) == 9


BAD = ["", "{", "{}", "-1", "0", "(", ",", "n" * 300]
KINDS = {  # of source: what only they have; the other options are tried with the first command
    "t.csv": {"--root", "--image", "--key", "--text", "--group", "--meta", "--label", "--variant"},
    "j.jsonl": {"--key", "--text", "--group", "--meta", "--label"},
    "s.csv": {
        "--columns", "--by", "--window", "--stride", "--split-by", "--margin", "--time", "--time-format", "--gaps",
        "--repeats", "--missing", "--resample", "--short", "--returns", "--prices", "--time-features", "--time-code",
    },
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    pictures(root, "c/a/1.jpg", "c/b/2.jpg")
    table(root, "key,caption,file", "k,x,c/a/1.jpg")
    fill(root, {"j.jsonl": b'{"text": "a"}\n{"text": "b"}\n'})
    sensors(root / "s.csv", 30)
    assert main(["shards", "pack", f"{root}/s.csv", f"{root}/d", "--as", "series", "--window", "4"]) == 0
    return root


@pytest.mark.parametrize(
    "command",
    [
        "pack c out", "pack t.csv out", "pack j.jsonl out", "pack s.csv out --as series --window 9 --split val=0.3",
        "split d out", "clean d out --drop duplicates", "stats d", "verify d", "inspect d", "index d",
    ],
)  # fmt: skip
def test_no_value_of_an_option_ends_in_a_traceback(
    sources: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each option of each command with values that nobody means: it is done, or refused in one last line."""
    monkeypatch.chdir(sources)
    monkeypatch.setattr("os.fsync", lambda file: None)
    name, *words = command.split()
    arguments = _app(["shards", name])["shards"][name].assemble_argument_collection()
    options = {option for argument in arguments for option in argument.names if option.startswith("--")}
    wanted = {option for option in options if not option.startswith(("--no-", "--empty-"))}
    assert "--limit" in wanted or name == "inspect"
    assert name != "pack" or set().union(*KINDS.values()) < wanted
    wanted = KINDS.get(words[0]) or wanted - set().union(*KINDS.values()) if name == "pack" else wanted
    for option in sorted(wanted - {"--compress", "--overwrite", "--keep-order", "--json"}):
        for value in BAD:
            for left in sources.glob("*out*"):
                shutil.rmtree(left)
            given = [f"{option}={value}"] if value.startswith("-") else [option, value]
            code = main(["shards", name, *words, *given])
            said = capsys.readouterr().err.splitlines()
            refusals = [line for line in said if line.startswith("bigssl: ")]
            if code == 1:  # a disk on which no name is that long, or findings
                assert name == "verify" or "File name too long" in said[-1], (given, said)
            elif code == 2:
                assert len(refusals) == 1 and said[-1] == refusals[0], (given, said)
            else:
                assert code == 0 and not refusals, (given, said)


def test_every_source_read_as_every_kind_is_done_or_refused(sources: Path, pack: Pack) -> None:
    series = b"@classLabel true x\n@data\n1,2:x\n"
    fill(sources, {"a.ts": series, "l.txt": b"a\nb\n", "zip.csv": b"PK\x03\x04\xff\0,\n"})
    fine = set()
    for name in ("c", "t.csv", "j.jsonl", "s.csv", "a.ts", "l.txt", "zip.csv"):
        for kind in ("files", "table", "lines", "jsonl", "series", "ts"):
            code, said = pack.run(sources / name, "--as", kind)
            assert code == 0 or (code == 2 and said.splitlines()[-1].startswith("bigssl: ")), (name, kind, said)
            fine |= {(name, kind)} if code == 0 else set()
    assert {("c", "files"), ("t.csv", "table"), ("j.jsonl", "jsonl"), ("s.csv", "series"), ("a.ts", "ts")} < fine
    assert not {kind for name, kind in fine if name == "zip.csv"}
    assert set(labels(pack(sources / "a.ts")[0]).values()) == {"x"}
    assert set(labels(pack(sources / "a.ts", "--labels", "none")[0]).values()) == {None}


def test_an_empty_path_is_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unset variable in a script would otherwise mean the working directory."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, {"s/a.txt": b"x"})
    for name, *words in (["pack", "out"], ["pack", "s"], ["split", "out"], ["clean", "out", "--drop", "duplicates"],
                         ["stats"], ["verify"], ["inspect"], ["index"]):  # fmt: skip
        empty = ["s", ""] if words == ["s"] else ["", *words]
        assert main(["shards", name, *empty]) == 2
        assert "is no path; is a variable empty?" in "".join(capsys.readouterr())
