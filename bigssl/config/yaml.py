"""Reading recipes: YAML with unique keys and `a.b=c` overrides."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from bigssl.config.errors import ConfigError, nearest
from bigssl.config.places import seen_from


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError when there is none."""
    if path.is_dir():
        raise ConfigError(f"--config: {path} is a folder; allowed: a recipe (YAML); recipes are in launch/recipes/")
    if not path.exists():
        there = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        near = f"{seen_from(path)}{nearest(path.name, there)}"
        raise ConfigError(f"--config: no file {path}{near}; `bigssl init` writes a recipe for your data")
    try:
        values = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); a recipe is a YAML file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        found = "nothing: the file is empty" if values is None else f"{type(values).__name__} {str(values)[:40]!r}"
        raise ConfigError(f"{path}: a recipe is a mapping of sections, found {found}; recipes are in launch/recipes/")
    return values


def _parse(text: str) -> Any:
    """Raises YAMLError also where PyYAML has other exceptions: for keys that are lists, and for endless nesting."""
    try:
        return yaml.load(text, Loader=_UniqueKeys)
    except (TypeError, ValueError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from None


_MERGE = "tag:yaml.org,2002:merge"


class _UniqueKeys(yaml.SafeLoader):
    """YAML's last-one-wins on a repeated key hides half of a recipe; refuse it. Reads `1e-3` as a number."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:  # `<<: *defaults`; what it brings may be replaced
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.YAMLError(f"key {key!r} stands twice, again at line {key_node.start_mark.line + 1}")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _exponent_number(loader: yaml.SafeLoader, node: Any) -> float:
    return float(node.value)


_EXPONENT = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_UniqueKeys.add_implicit_resolver("!exponent", _EXPONENT, list("-+0123456789"))
_UniqueKeys.add_constructor("!exponent", _exponent_number)


def apply_override(values: dict[str, Any], override: str, path: str) -> None:
    """Set `a.b=c` in the mapping `values` of the file `path`; the value is YAML. Raises ConfigError."""
    field, equals, text = override.partition("=")
    if not equals or not all(field.split(".")):
        raise ConfigError(f"override {override!r}: expected a.b=c, for example optim.lr=0.001")
    *parents, last = field.split(".")
    here: Any = values
    for depth, name in enumerate(parents):
        if here.get(name) is None:  # missing, or a section without fields
            here[name] = {}
        here = here[name]
        if not isinstance(here, dict):
            section = ".".join(parents[: depth + 1])
            raise ConfigError(f"override {override!r}: {section} is a value, not a section, in {path}")
    try:
        here[last] = _parse(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: value is not YAML: {error}") from None



_WORD = re.compile(r"\{([A-Za-z_]\w*)\}")


def filled_in(values: dict[str, Any], path: str) -> dict[str, Any]:
    """A recipe's values with each {NAME} in a string replaced by `fill.NAME`, and without `fill`. A string that is
    nothing but {NAME} becomes that value, null as well.

    Raises:
        ConfigError: `fill` does not say what a {NAME} is, or null where a text goes on.
    """
    words = values.get("fill") or {}
    if not isinstance(words, dict):
        raise ConfigError(f"{path}: fill: value {words!r}; allowed: a mapping, e.g. {{root: DIR, label: FIELD}}")

    def fill(value: Any, field: str) -> Any:
        if isinstance(value, dict):
            return {key: fill(below, f"{field}.{key}" if field else str(key)) for key, below in value.items()}
        if isinstance(value, list):
            return [fill(below, f"{field}.{number}") for number, below in enumerate(value)]
        for name in _WORD.findall(value) if isinstance(value, str) else ():
            whole = value == f"{{{name}}}"
            if name not in words or (words[name] is None and not whole):
                raise ConfigError(f"{path}: {field}: value {value!r} needs fill.{name}{nearest(name, list(words))}; "
                                  f"allowed: e.g. fill.{name}={'DIR' if name == 'root' else 'FIELD'}")  # fmt: skip
            if whole:
                return words[name]
            value = value.replace(f"{{{name}}}", str(words[name]))
        return value

    found: dict[str, Any] = fill({key: below for key, below in values.items() if key != "fill"}, "")
    return found
