"""`bigssl shards pack` of what pictures, texts and tables are labelled with: classes, several of them, boxes, masks,
answers and tags; and that nothing of it is lost unsaid."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from packing import Pack, labels, read
from PIL import Image
from written import fill

from bigssl.cli.main import main
from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.sample import Sample
from bigssl.transfer.features import column
from bigssl.transfer.labelled.classes import label_target

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Pack:
    return Pack(tmp_path, capsys)


def encoded(picture: Image.Image, form: str = "JPEG", orientation: int = 1) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    picture.save(buffer, form, **({"exif": exif} if orientation != 1 else {}))
    return buffer.getvalue()


def jpg(width: int = 8, height: int = 6, orientation: int = 1) -> bytes:
    return encoded(Image.new("RGB", (width, height), "red"), "JPEG", orientation)


def mask(values: object, mode: str | None = None) -> bytes:
    picture = Image.fromarray(np.asarray(values, np.uint8))
    if mode == "P":
        picture.putpalette([value for grey in range(256) for value in (grey, 0, 255 - grey)])
    return encoded(picture, "PNG")


def table(root: Path, text: str, name: str = "t.csv") -> Path:
    return fill(root, {name: text.encode()}) / name


def jsonl(root: Path, *records: object) -> Path:
    return table(root, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "t.jsonl")


# Classes


def test_class_folders_are_labels_and_keys_stay(tmp_path: Path, pack: Pack) -> None:
    source = fill(tmp_path / "s", {f"{kind}/{n}.jpg": jpg() for kind in ("cat", "dog") for n in range(2)})
    samples, said = pack(source)
    assert labels(samples) == {"cat/0": "cat", "cat/1": "cat", "dog/0": "dog", "dog/1": "dog"}
    assert "label: 2 classes (cat 2, dog 2)" in said


def test_several_columns_are_the_list_of_those_that_hold_one(tmp_path: Path, pack: Pack) -> None:
    fill(tmp_path, {"a.jpg": jpg(), "b.jpg": jpg(), "c.jpg": jpg()})
    flags = table(tmp_path, "file,red,round,taste\na.jpg,1,0,sweet\nb.jpg,0,False,\nc.jpg,yes,1.0,sour\n")
    samples, said = pack(flags, "--label", "red,round,taste")
    assert labels(samples) == {"a": ["red", "sweet"], "b": [], "c": ["red", "round", "sour"]}
    assert "label: 4 classes (red 2, sweet 1, round 1, sour 1), 1 samples without" in said
    line = pack.refused(table(tmp_path, "file,red,round\na.jpg,-1,0\n", "u.csv"), "--label", "red,round")
    assert "u.csv, line 2: column 'red' of several with labels holds '-1'; allowed are 0 and 1" in line


def test_a_column_with_separators_is_a_list(tmp_path: Path, pack: Pack) -> None:
    fill(tmp_path, {"a.jpg": jpg(), "b.jpg": jpg()})
    source = table(tmp_path, "file,label\na.jpg,red| round\nb.jpg,\n")
    samples, said = pack(source)
    assert labels(samples) == {"a": "red| round", "b": None}
    assert "'label' may hold several classes each, as in 'red| round': --label label --separator '|' parts them" in said
    assert labels(pack(source, "--label", "label", "--separator", "|")[0]) == {"a": ["red", "round"], "b": []}
    assert "needs one --label COLUMN" in pack.refused(source, "--separator", "|")


def test_lists_of_a_jsonl_are_labels(tmp_path: Path, pack: Pack) -> None:
    samples, said = pack(jsonl(tmp_path, {"text": "x", "label": ["a", "b"]}, {"text": "y", "label": []}))
    assert labels(samples) == {"t-000000": ["a", "b"], "t-000001": []} and "2 classes (a 1, b 1), 1 samples" in said
    flags = jsonl(tmp_path, {"text": "x", "old": True, "long": 0}, {"text": "y", "old": None, "long": 1})
    assert labels(pack(flags, "--label", "old,long")[0]) == {"t-000000": ["old"], "t-000001": ["long"]}


def test_a_label_that_looks_like_none_is_told_and_numbers_are_one_class_however_written(
    tmp_path: Path, pack: Pack
) -> None:
    fill(tmp_path, {f"{name}.jpg": jpg() for name in "abc"})
    samples, said = pack(table(tmp_path, "file,label\na.jpg,nan\nb.jpg,\nc.jpg,cat\n"))
    assert labels(samples) == {"a": "nan", "b": None, "c": "cat"}, "it may be the name of one"
    assert "1 labels are written as programs write a missing value, e.g. 't.csv, line 2: nan'" in said
    numbers = [{"text": text, "label": label} for text, label in (("x", 1), ("y", 1.0), ("z", "1"), ("w", 0.5))]
    samples, said = pack(jsonl(tmp_path, *numbers))
    assert "label: 2 classes (1 3, 0.5 1)" in said
    target = label_target("label")
    found = [target(Sample(key, fields, 0, 0, "", "")) for key, fields in sorted(samples.items())]
    meta = [decode.meta(fields["json"]) for _, fields in sorted(samples.items())]
    assert found == column(list("xyzw"), meta, "label") == ["1", "1", "1", "0.5"]
    with pytest.raises(DataError, match="sample 'x': no metadata field 'label'"):
        column(["x"], [{"label": None}], "label")


# Boxes


def coco(*annotations: dict, **images: tuple[int, int]) -> dict:
    """images: file name without .jpg -> width and height."""
    listed = [{"id": n, "file_name": f"{name}.jpg", "width": w, "height": h}
              for n, (name, (w, h)) in enumerate(images.items())]  # fmt: skip
    return {"images": listed, "annotations": [{"id": n + 100, **each} for n, each in enumerate(annotations)],
            "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]}  # fmt: skip


def box(image: int, *bbox: float, category: int = 3, **more: object) -> dict:
    return {"image_id": image, "category_id": category, "bbox": list(bbox), **more}


def test_boxes_of_a_coco_file_are_found_and_all_that_is_not_taken_is_said(tmp_path: Path, pack: Pack) -> None:
    facts = coco(box(0, 1, 1, 2.5, 3), box(0, 0, 0, 8, 6, category=7, iscrowd=1), box(0, 2, 2, 0, 3),
                 box(2, 6, 0, 5, 4), box(9, 0, 0, 1, 1), a=(8, 6), none=(8, 6), b=(8, 6), gone=(4, 4))  # fmt: skip
    files = {"img/a.jpg": jpg(), "img/none.jpg": jpg(), "img/b.jpg": jpg(), "img/new.jpg": jpg()}
    source = fill(tmp_path / "s", files | {"instances.json": json.dumps(facts).encode()})
    samples, said = pack(source)
    assert {key: json.loads(fields.get("json", b"null")) for key, fields in samples.items()} == {
        "img/a": {"boxes": [[1, 1, 2.5, 3], [0, 0, 8, 6]], "labels": ["cat", "dog"], "crowd": [False, True]},
        "img/b": {"boxes": [[6, 0, 2, 4]], "labels": ["cat"]}, "img/none": {"boxes": [], "labels": []},
        "img/new": None,
    }  # fmt: skip
    for part in ("boxes: ", "e.g. 'img/new.jpg'; packed without",
                 "1 pictures that a file of boxes names are not in the folder, e.g. 'gone.jpg'",
                 "1 boxes without width or height, e.g. 'annotation 102 of a.jpg'",
                 "1 boxes reach out of their picture", "1 annotations of pictures that their file"):  # fmt: skip
        assert part in said, part
    assert set(pack(source, "--boxes", "none")[0]) == {"img/a", "img/b", "img/none", "img/new", "instances"}
    aside = fill(tmp_path, {"train.json": json.dumps(facts).encode()}) / "train.json"
    (source / "instances.json").unlink()
    assert pack(source, "--boxes", aside)[0] == samples


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (coco(box(0, 9, 0, 2, 2), a=(8, 6)), "annotation 100 of a.jpg: bbox .* lies outside of the picture, 8×6"),
        (coco(box(0, 1, 1, 2), a=(8, 6)), r"bbox is \[1, 1, 2\]; four numbers are needed"),
        (coco(box(0, 1, 1, 2, 2, category=5), a=(8, 6)), "category_id 5 is none of 2 categories"),
        (coco(a=(6, 8)), "a.jpg is 8×6 pixels, .* has boxes for 6×8"),
        (coco(b=(8, 6)), "none of its 1 pictures, such as 'b.jpg', is in the folder"),
        ({"images": [{"id": 1}], "annotations": [], "categories": []}, "images need id, file_name, width and height"),
        ([], "not what COCO writes"),
    ],
)
def test_boxes_that_do_not_fit_are_named(tmp_path: Path, pack: Pack, facts: object, message: str) -> None:
    source = fill(tmp_path / "s", {"a.jpg": jpg()})
    file = fill(tmp_path, {"f.json": json.dumps(facts).encode()}) / "f.json"
    line = pack.refused(source, "--boxes", file)
    assert re.search(message, line), line


def test_boxes_are_those_of_the_picture_as_it_is_shown(tmp_path: Path, pack: Pack) -> None:
    source = fill(tmp_path / "s", {"a.jpg": jpg(8, 6, orientation=6)})
    upright = coco(box(0, 0, 0, 6, 8), a=(6, 8))
    (source / "b.json").write_text(json.dumps(upright))
    assert json.loads(pack(source)[0]["a"]["json"])["boxes"] == [[0, 0, 6, 8]]
    (source / "b.json").write_text(json.dumps(coco(box(0, 0, 0, 8, 6), a=(8, 6))))
    assert "is 6×8 pixels (turned by EXIF orientation 6)" in pack.refused(source)
    (source / "b.json").write_text(json.dumps(coco(a=(8, 6))))
    (source / "a.jpg").write_bytes(jpg(8, 6, orientation=3))
    assert "nothing tells whether its boxes are; store it upright" in pack.refused(source)
    (source / "b.json").write_text(json.dumps(coco(a=(8, 8))))
    (source / "a.jpg").write_bytes(jpg(8, 8, orientation=6))  # a square has the same size before and after
    assert "orientation 6, and nothing tells whether its boxes are" in pack.refused(source)


# Masks


def test_masks_are_found_beside_and_in_a_folder_of_their_own(tmp_path: Path, pack: Pack) -> None:
    values = np.arange(48).reshape(6, 8) % 3
    both = {"images/x.jpg": jpg(), "masks/x.png": mask(values)}
    parallel = fill(tmp_path / "p", {f"{part}/{name}": both[name] for part in ("train", "val") for name in both})
    samples, said = pack(parallel)
    assert {key: sorted(fields) for key, fields in samples.items()} == {
        "train/images/x": ["jpg", "mask.png"], "val/images/x": ["jpg", "mask.png"]}  # fmt: skip
    assert samples["val/images/x"]["mask.png"] == mask(values) and "masks: 2 pictures have one" in said
    assert "train/masks/x" in pack(parallel, "--masks", "none")[0]
    named = fill(tmp_path / "n", {"a.jpg": jpg(), "a_mask.png": mask(values, "P"), "b.png": mask(values),
                                  "b.mask.png": mask(values), "c.jpg": jpg(), "d_mask.png": mask(values)})  # fmt: skip
    samples, said = pack(named)
    assert {key: sorted(fields) for key, fields in samples.items()} == {
        "a": ["jpg", "mask.png"], "b": ["mask.png", "png"], "c": ["jpg"]}  # fmt: skip
    assert "left out: 1 masks of which there is no picture, e.g. 'd_mask.png'" in said
    assert "1 pictures have no mask, e.g. 'c.jpg'" in said
    np.testing.assert_array_equal(decode.mask(samples["a"]["mask.png"]), values)
    same = fill(tmp_path / "same", {"a.jpg": jpg(), "a.png": mask(values)})
    assert "second picture" in pack(same)[1]
    assert sorted(pack(same, "--masks", "beside")[0]["a"]) == ["jpg", "mask.png"]
    aside = fill(tmp_path / "elsewhere", {"a.png": mask(values), "z.png": mask(values)})
    (same / "a.png").unlink()
    samples, said = pack(same, "--masks", aside)
    assert samples["a"]["mask.png"] == mask(values) and "1 masks of which there is no picture" in said


def test_masks_that_do_not_fit_are_named(tmp_path: Path, pack: Pack) -> None:
    source = fill(tmp_path / "s", {"a.jpg": jpg(), "a_mask.png": mask(np.zeros((5, 8)))})
    line = pack.refused(source)
    assert "a_mask.png is 8×5 pixels, its picture" in line and "a.jpg 8×6; a mask has the size" in line
    (source / "a_mask.png").write_bytes(encoded(Image.new("RGB", (8, 6)), "PNG"))
    assert "mask a_mask.png: a mask is grey or of a palette" in pack.refused(source)
    (source / "a.jpg").write_bytes(jpg(6, 8, orientation=6))
    (source / "a_mask.png").write_bytes(mask(np.full((8, 6), 7)))
    assert "is 6×8 pixels, its picture" in (line := pack.refused(source)) and "(turned by EXIF orientation 6)" in line
    (source / "a.jpg").write_bytes(jpg())
    (source / "a_mask.png").write_bytes(mask(np.arange(48).reshape(6, 8) % 2 * 255))
    assert "0 and 255, which is no class but means not judged" in pack(source)[1]
    others = fill(tmp_path / "others", {"b.png": b""})
    assert "no png there is named as one of the 2 pictures" in pack.refused(source, "--masks", others)


def test_a_folder_of_pictures_that_is_only_called_so_holds_no_masks(tmp_path: Path, pack: Pack) -> None:
    colours = encoded(Image.new("RGB", (8, 6), "blue"), "PNG")
    source = fill(tmp_path / "s", {"faces/1.png": colours, "masks/1.png": colours, "masks/2.png": colours})
    samples, said = pack(source)
    assert labels(samples) == {"faces/1": "faces", "masks/1": "masks", "masks/2": "masks"} and "have one" not in said
    grey = mask(np.zeros((6, 8)))
    classes = fill(tmp_path / "c", {f"images/{part}/{n}.png": grey for part in ("mask", "no_mask") for n in range(2)})
    samples, said = pack(classes)
    assert labels(samples) == {f"images/{part}/{n}": part for part in ("mask", "no_mask") for n in range(2)}
    assert "images/mask: called as a folder of masks is, but taken for pictures" in said
    assert f"--masks {classes / 'images/mask'}" in said


def test_a_folder_of_masks_is_never_taken_for_pictures_unsaid(tmp_path: Path, pack: Pack) -> None:
    grey, shown = mask(np.zeros((6, 8))), {f"images/{n}.jpg": jpg() for n in range(3)}
    orphan = fill(tmp_path / "o", shown | {f"masks/{n}.png": grey for n in (0, 7, 8)})
    samples, said = pack(orphan)
    assert {key: sorted(fields) for key, fields in samples.items()} == {
        "images/0": ["jpg", "mask.png"], "images/1": ["jpg"], "images/2": ["jpg"]}  # fmt: skip
    assert "left out: 2 masks of which there is no picture" in said
    for name, data, why in (("0.png", encoded(Image.new("RGB", (8, 6)), "PNG"), "holds colours"),
                            ("0.jpg", encoded(Image.new("L", (8, 6))), "is no png")):  # fmt: skip
        source = fill(tmp_path / why, shown | {f"masks/{name}": data, "masks/1.png": grey})
        line = pack.refused(source)
        assert f"masks looks like the masks of the pictures in images, but masks/{name} {why}" in line
        assert "--masks none" in line and "masks/1" in pack(source, "--masks", "none")[0]
    nested = fill(tmp_path / "n", shown | {"annotations/trimaps/1.png": grey})
    assert sorted(pack(nested)[0]["images/1"]) == ["jpg", "mask.png"]
    strange = fill(tmp_path / "x", shown | {"masks/0_seg.png": grey})
    assert "masks: called as a folder of masks is, but taken for pictures" in pack(strange)[1]
    around = fill(tmp_path / "a", {"0.jpg": jpg(), "1.jpg": jpg(), "masks/0.png": grey})
    assert {key: sorted(fields) for key, fields in pack(around)[0].items()} == {"0": ["jpg", "mask.png"], "1": ["jpg"]}


# Answers and tags


def test_questions_and_tags_need_no_option(tmp_path: Path, pack: Pack) -> None:
    question = {"id": "q1", "question": "Wo?", "context": "Sie wohnt in Köln.",
                "answers": {"text": ["Köln"], "answer_start": [13]}}  # fmt: skip
    nothing = question | {"id": "q2", "question": "Wann?", "answers": {"text": [], "answer_start": []}}
    samples, said = pack(jsonl(tmp_path, question, nothing), "--key", "id")
    assert samples["q1"]["txt"].decode() == question["context"] and "answers in the json" in said
    assert json.loads(samples["q1"]["json"]) == {name: question[name] for name in ("question", "context", "answers")}
    assert json.loads(samples["q2"]["json"])["answers"] == {"text": [], "answer_start": []}
    moved = question | {"answers": {"text": ["Köln"], "answer_start": [12]}}
    line = pack.refused(jsonl(tmp_path, question, moved))
    assert "t.jsonl, line 2: answer 'Köln' does not stand at answer_start 12 of the context, where ' Köln.' is" in line
    tagged = {"tokens": ["Ada", "schreibt"], "ner_tags": ["B-PER", "O"]}
    samples, said = pack(jsonl(tmp_path, tagged))
    assert samples["t-000000"]["txt"] == b"Ada schreibt" and "label: 2 classes (B-PER 1, O 1)" in said
    assert json.loads(samples["t-000000"]["json"]) == {"tokens": ["Ada", "schreibt"], "label": ["B-PER", "O"]}
    line = pack.refused(jsonl(tmp_path, tagged, tagged | {"ner_tags": ["O"]}))
    assert "line 2: tokens and ner_tags must be lists of one length" in line and "they are 2 and 1" in line


# The README


def test_each_line_of_the_readme_packs_what_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    question = {"question": "Wo?", "context": "In Köln.", "answers": {"text": ["Köln"], "answer_start": [3]}}
    files = {f"photos/{kind}/1.jpg": jpg() for kind in ("cat", "dog")} | {"a.jpg": jpg(), "val2017/a.jpg": jpg()}
    files |= {"items.csv": b"file,kind,red,round,old,tags\na.jpg,cup,1,0,1,big;new\n", "scans/a.jpg": jpg()}
    files |= {"instances_val2017.json": json.dumps(coco(box(0, 1, 1, 2, 2), a=(8, 6))).encode()}
    files |= {"truth/a.png": mask(np.ones((6, 8))), "squad.jsonl": json.dumps(question).encode()}
    fill(tmp_path, files | {"tagged.jsonl": json.dumps({"tokens": ["Ada"], "ner_tags": ["B"]}).encode()})
    block = next(part for part in README.read_text().split("```bash\n") if part.startswith("bigssl shards pack photos"))
    commands = [shlex.split(line, comments=True) for line in block.split("```")[0].splitlines()]
    for command in commands:
        assert main(command[1:]) == 0, capsys.readouterr().err
    found = [read(tmp_path / f"DIR{number}") for number in range(1, 9)]
    assert labels(found[0]) == {"cat/1": "cat", "dog/1": "dog"}
    assert [labels(found[n]) for n in (1, 2, 3)] == [{"a": "cup"}, {"a": ["red", "old"]}, {"a": ["big", "new"]}]
    assert json.loads(found[4]["a"]["json"]) == {"boxes": [[1, 1, 2, 2]], "labels": ["cat"]}
    assert (decode.mask(found[5]["a"]["mask.png"]) == 1).all()
    assert json.loads(found[6]["squad-000000"]["json"]) == question and labels(found[7]) == {"tagged-000000": ["B"]}


def test_a_json_is_told_where_it_belongs(tmp_path: Path, pack: Pack) -> None:
    boxes = fill(tmp_path, {"boxes.json": json.dumps(coco(a=(8, 6))).encode()}) / "boxes.json"
    assert f"boxes go with the folder of their pictures: --boxes {boxes}" in pack.refused(boxes)
    squad = fill(tmp_path, {"squad.json": b'{"data": [{"paragraphs": []}]}'}) / "squad.json"
    assert "makes lines of questions" in (line := pack.refused(squad)) and "`jq -c '.data[].paragraphs[] |" in line
