"""Of which modality is a backbone of the recipe, and does it have the fields for that?"""

from __future__ import annotations

from bigssl.config.errors import ConfigError, nearest
from bigssl.config.recipe import BackboneConfig
from bigssl.nets.modality.kinds import WHY_NOT
from bigssl.nets.modality.table import MODALITIES, Modality, modality_of_type
from bigssl.nets.vision.sizes import NAMED


def modality_for(where: str, config: BackboneConfig) -> Modality:
    """The row of a backbone: by the fields that only one row has, or else by its type.

    Raises:
        ConfigError: fields of two rows; a type that is none of the fields' row, with why and the nearest that is.
    """
    own = modality_of_type(config.type)
    may = own.optional if own is not None else ()
    given = [row for row in MODALITIES.values()
             if (first := next(iter(row.fields))) not in may and getattr(config, first) is not None]
    if len(given) > 1:
        both = " and ".join(f"{f} {getattr(config, f)}" for f in (next(iter(row.fields)) for row in given[:2]))
        kinds = " or ".join(row.described for row in given[:2])
        raise ConfigError(f"{where}: {both} do not go together; allowed: {kinds}")
    row = given[0] if given else own
    if row is None:
        kinds = "; ".join(each.described for each in MODALITIES.values())
        reason = f" ({WHY_NOT[config.type]})" if config.type in WHY_NOT else ""
        raise ConfigError(f"{where}.type: value {config.type!r} serves as none{reason}; allowed: {kinds}")
    check_kind(f"{where}.type", config.type, row)
    return row


def check_fields(where: str, config: BackboneConfig) -> None:
    """Refuse a backbone that lacks a field of its modality, or has one of another. Raises ConfigError."""
    row = modality_for(where, config)
    for field, what in row.fields.items():
        if getattr(config, field) is None:
            raise ConfigError(f"{where}.{field}: missing; {row.described} needs {what}")
    every = {field for each in MODALITIES.values() for field in (*each.fields, *each.optional)}
    for field in sorted(every - {*row.fields, *row.optional}):
        if (value := getattr(config, field)) is not None:
            raise ConfigError(f"{where}.{field}: value {value} has no effect on {row.described}; remove it")


def check_kind(where: str, kind: str, row: Modality) -> None:
    """Refuse a model type that is in no table. `where`: the recipe field that names it, for the error."""
    if kind in row.kinds:
        return
    other = modality_of_type(kind)
    reason = f"it takes {other.takes}" if other else WHY_NOT.get(kind, "it was not tried as one")
    named = [name for name, size in NAMED.items() if size.kind in row.kinds]
    allowed = f"{', '.join([*row.kinds, *named])}{nearest(kind, [*row.kinds, *named])}"
    raise ConfigError(f"{where}: value {kind!r} is not for {row.described}: {reason}; allowed: {allowed}")
