"""What `bigssl evaluate` judges: networks with their heads, and what is known of the run that made them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from bigssl.cli.recipes import recipe_of
from bigssl.cli.transfer.serving import Served, serve
from bigssl.cli.transfer.wishes import Wish
from bigssl.config.errors import ConfigError, say
from bigssl.config.evaluate import Evaluation
from bigssl.config.recipe import Recipe, dump_recipe
from bigssl.engine.plan.evaluation import Shelves, check_sections, refuse_seen
from bigssl.engine.plan.sources import source_indexes
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head
from bigssl.objectives.exported import about_export, heads_of_export
from bigssl.transfer.arriving.folders import Networks, networks_at, towers_at


@dataclass(frozen=True)
class Judgeable:
    """recipe: of the run that made the networks; None where no run is known."""

    path: Path
    networks: Networks
    recipe: Recipe | None

    @classmethod
    def at(cls, path: Path, overrides: Sequence[str] = ()) -> Judgeable:
        """Raises ConfigError where there is nothing to judge."""
        networks = networks_at(path)
        return cls(path, networks, _recipe(path, networks, overrides))

    @property
    def is_run(self) -> bool:
        return self.networks.run == self.path

    @cached_property
    def towers(self) -> dict[str, Tower]:
        return towers_at(self.networks.folder, self.networks.names)

    @cached_property
    def heads(self) -> dict[str, Head]:
        return heads_of_export(self.networks.folder)

    @cached_property
    def steps(self) -> int:
        """That the networks were trained for; 0 where nobody knows, as of those of another program."""
        try:
            return int(about_export(self.networks.folder)["steps"])
        except (OSError, ValueError):
            return 0

    @property
    def described(self) -> str:
        return f"of the export after {self.steps} steps" if self.steps else "of the networks in it"

    @property
    def unknown(self) -> list[str]:
        """A sentence on what cannot be known of networks without a recipe."""
        if self.recipe is not None:
            return []
        return ["No recipe tells what these networks were trained on: they may have seen what is judged here."]

    def serve(self, wish: Wish) -> Served:
        """The sections that a wish asks for, checked. Raises ConfigError where one that it names cannot be served."""
        return serve(wish, str(self.path), self.known, self.towers, self.heads)

    @property
    def known(self) -> Mapping[str, Evaluation]:
        """The evaluations of the recipe."""
        return (self.recipe.evaluate or {}) if self.recipe is not None else {}

    def check(self, evaluate: Mapping[str, Evaluation]) -> None:
        """As `bigssl config check` does, for the networks that are there. Raises ConfigError."""
        sections = {f"evaluate.{name}": section for name, section in evaluate.items()}
        check_sections(sections, self.towers, self.heads, Shelves())

    def refuse_seen(self, evaluate: Mapping[str, Evaluation]) -> None:
        """Sections may have been edited since the run began. Shards that are gone from here cannot be compared."""
        if self.recipe is None:
            return
        indexes = {}
        for name, source in self.recipe.data.sources.items():
            try:
                indexes[name] = source_indexes(source, f"data.sources.{name}").values()
            except ConfigError as error:
                say(error, "not checked whether what is judged was trained on: ")
        refuse_seen(self.recipe.model_copy(update={"probe": None, "evaluate": dict(evaluate)}), indexes)

    def recipe_with(self, evaluate: Mapping[str, Evaluation], seed: int) -> str:
        """YAML that says how a scorecard was made: the recipe, where there is one, with these evaluations."""
        if self.recipe is not None:
            return dump_recipe(self.recipe.model_copy(update={"evaluate": dict(evaluate), "seed": seed}))
        sections = {name: json.loads(section.model_dump_json()) for name, section in evaluate.items()}
        return yaml.safe_dump({"seed": seed, "evaluate": sections}, sort_keys=False)


def _recipe(path: Path, networks: Networks, overrides: Sequence[str]) -> Recipe | None:
    if networks.run is None:
        return None
    try:
        return recipe_of(networks.run, overrides)
    except ConfigError:
        if networks.run == path:
            raise
        return None  # of another version: what lies beside an export is no part of it
