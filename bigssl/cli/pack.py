"""`bigssl shards pack`."""

from __future__ import annotations

from bigssl.cli.fields import Fields
from bigssl.cli.listing import listed
from bigssl.cli.options import AGAIN, Writing, local, note, note_left_out, print_written, refuse_destroying, split_of
from bigssl.config.places import seen_from
from bigssl.data.errors import DataError
from bigssl.data.tools.parts import equal_together as joined


def pack(source: str, folder: str, /, *, split: str | None = None, seed: int = 0, keep_order: bool = False,
         equal_together: bool = False, fields: Fields | None = None,
         writing: Writing | None = None) -> None:  # fmt: skip
    """
    Args:
        source: a folder or a file, see --as
        folder: where the shards go; interrupted, the same command goes on
        split: PART=FRACTION, e.g. val=0.1: folder/val and folder/train
        seed: of split and shuffle
        keep_order: as the source has it (default: shuffled, by a hash of seed and key)
        equal_together: samples of equal content stay on one side of --split; each is read once more
    """
    # imported here: webdataset takes seconds to load, and only writing needs it
    from bigssl.data.tools.pack import pack

    if equal_together and split is None:
        raise DataError("--equal-together: has no effect without --split")
    fields, writing = fields or Fields(), writing or Writing()
    origin, there = local(source), local(folder)
    if not origin.exists():
        raise DataError(f"source {origin}: no such file or folder{seen_from(origin)}")
    refuse_destroying(str(origin), there)
    if there.exists() and there.resolve().is_relative_to(origin.resolve()):
        raise DataError(f"{there} exists in the source {origin}, so it would be packed too; move it away")
    part = None if split is None else split_of(split)
    with writing.applied(AGAIN):
        found = listed(origin, fields, there, held_out=part[1] if part else 0.0)
        for line in found.notes:
            note(line)
        options = writing.arguments(there)
        items = joined(found.items) if equal_together else found.items
        indexes = pack(items, there, split=part, seed=seed, shuffle=not keep_order, **options)
    print_written(there, indexes)
    note_left_out(found.left_out)
