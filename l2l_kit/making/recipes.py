"""Recipes: files that say how a pretrained optimizer was made, so that one command makes it again.

A recipe is a TOML file with the sections ``[problem]``, ``[optimizer]`` and ``[training]``: the arguments of
`problems.make`, `optimizers.make` and `MetaTraining`. Others are optional: ``[search]``, the arguments of `Search`;
``[imitation]``, those of `Imitation` and, under ``teacher``, those of a baseline, or of one for each kind of parameter;
``start``, another recipe from whose optimizer the training goes on; and ``[grid]``, lists of values such as
``"training.unroll" = [1, 20]`` or ``"optimizer.preprocessing.factor" = [10, 100]``, which make the recipe a family.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from l2l_kit import optimizers, problems
from l2l_kit.errors import Count, check_fields, check_names, look_up, names_files
from l2l_kit.making.imitation import Imitation
from l2l_kit.making.plans import combinations, make_from, read_plan
from l2l_kit.optimizers import Baseline, GroupedBaselines, UpdateRule, baseline
from l2l_kit.paths import RECIPES
from l2l_kit.problems import Problem
from l2l_kit.storage import BoundedWeights, load_weights
from l2l_kit.training import MetaTraining


@dataclass(frozen=True)
class Search:
    """Random search of the meta-learning rate, as in the paper: short runs, the best final validation loss wins."""

    trials: Count  # number of runs
    epochs: Count  # length of each
    meta_lr: Sequence[float]  # bounds between which its logarithm is drawn uniformly
    # Bounds of other settings that are open, by their names in ``[optimizer]``. If the lower bound is above 0, the
    # logarithm is drawn uniformly, else the setting itself.
    optimizer: Mapping[str, Sequence[float]] = field(default_factory=dict)
    # Give a trial up once it is worse than the median of the others after as many epochs. Which trials are given up
    # depends on the order in which they end, which several processes do not repeat.
    prune: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "search")
        for name, bounds in self.ranges.items():
            match bounds:
                case [int() | float() as low, int() | float() as high] if 0 <= low <= high and (
                    low or name != "meta_lr"
                ):
                    continue
            above = "0 < low" if name == "meta_lr" else "0 <= low"
            raise ValueError(f"search: {name} must be two bounds, {above} <= high, got {bounds!r}.")

    @property
    def ranges(self) -> dict[str, Sequence[float]]:
        """Lower and upper bound of all that is drawn."""
        return {"meta_lr": self.meta_lr, **self.optimizer}


@dataclass(frozen=True)
class Recipe:
    """How one pretrained optimizer is made."""

    name: str
    problem: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    training: MetaTraining
    search: Search | None = None
    imitation: Imitation | None = None
    teacher: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None
    initial: Mapping[str, Tensor] | None = None  # the weights of `start`, once they are there

    def make_problem(self) -> Problem:
        """The problem that the optimizer is trained on."""
        return problems.make(self.problem)

    def make_optimizer(self) -> UpdateRule:
        """The optimizer with its initial weights.

        Raises:
            WeightsFileError: if the weights of `start` belong to an optimizer of another shape.
        """
        optimizer = optimizers.make(self.optimizer)
        if self.initial is not None:
            load_weights(optimizer, self.initial, f"recipe {self.name!r}, start {self.start!r}")
        return optimizer

    def make_teacher(self) -> Baseline | GroupedBaselines:
        """What is imitated: a baseline, or one for each kind of parameter."""
        if "name" in self.teacher:
            return make_from("teacher", baseline, self.teacher)
        if not self.teacher:
            raise ValueError("imitation: 'teacher' is missing, such as teacher = { name = \"adam\", lr = 0.01 }")
        for kind, arguments in self.teacher.items():
            if not isinstance(arguments, Mapping):
                raise ValueError(f"teacher: {kind} must be a table with a baseline's name and lr, got {arguments!r}")
        return GroupedBaselines({kind: make_from(f"teacher.{kind}", baseline, it) for kind, it in self.teacher.items()})

    def with_draw(self, drawn: Mapping[str, float]) -> Recipe:
        """This recipe with values for what its search leaves open: `meta_lr`, and settings of the optimizer."""
        settings = dict(drawn)
        training = replace(self.training, meta_lr=settings.pop("meta_lr"))
        return replace(self, training=training, optimizer={**self.optimizer, **settings})


def read_recipes(name_or_path: str | Path) -> list[Recipe]:
    """The recipes in a file of data/recipes or in one by its path, or one of them by its own name.

    Raises:
        UnknownNameError, ValueError: as `read_plan`.
    """
    if Path(name_or_path).suffix == ".toml" or (RECIPES / f"{name_or_path}.toml").is_file():
        return read_plan("recipe", name_or_path, RECIPES, _family)
    return [find_recipe(str(name_or_path))]


def find_recipe(name: str) -> Recipe:
    """The recipe of a pretrained optimizer, alone in its file or a member of a family.

    Raises:
        UnknownNameError: if no file of data/recipes makes an optimizer of that name; the message offers the nearest.
    """
    return look_up("recipe", name, _shipped())


@cache
def _shipped() -> dict[str, Recipe]:
    """All recipes of data/recipes by name."""
    return {recipe.name: recipe for path in sorted(RECIPES.glob("*.toml")) for recipe in read_recipes(path)}


def _family(stem: str, content: dict[str, Any]) -> list[Recipe]:
    """A recipe for each combination of the grid's values, with the name's placeholders filled in."""
    sections = ("name", "start", "problem", "optimizer", "imitation", "training", "search", "grid")
    check_names("section", content, sections)
    for name, value in content.items():
        wanted, words = (str, "a text") if name in ("name", "start") else (dict, f"a table, [{name}]")
        if not isinstance(value, wanted):
            raise ValueError(f"{name} must be {words}, got {value!r}")
    recipes = []
    for setting in combinations(content.pop("grid", {})):
        member, chosen = deepcopy({"name": stem, **content}), {}
        for key, value in setting.items():
            *path, name = key.split(".")
            table: Any = member
            for part in path:
                table = table[part]
                if not isinstance(table, dict):
                    raise ValueError(f"grid.{key}: {part} must be a table, got {table!r}")
            table[name] = chosen[name] = value
        member["name"] = re.sub(r"{(\w+)}", lambda found, chosen=chosen: str(chosen[found[1]]), member["name"])  # type: ignore[misc]
        recipes.append(_recipe(member))
    if len({recipe.name for recipe in recipes}) < len(recipes):
        raise ValueError(f"several members of its grid have the name {recipes[0].name!r}; use placeholders in it")
    return recipes


def _recipe(content: dict[str, Any]) -> Recipe:
    """One recipe, after all that it asks for was made once, so that mistakes are found before anything is run."""
    content["teacher"] = content.get("imitation", {}).pop("teacher", {})
    for section, kind in (("training", MetaTraining), ("search", Search), ("imitation", Imitation)):
        if section in content or section == "training":
            content[section] = make_from(section, kind, content[section])
    recipe = make_from("recipe", Recipe, content)
    check_fields(recipe, "recipe")
    if not names_files(recipe.name):
        raise ValueError(f"its name names files, of letters, digits, '-', '_' and '.', got {recipe.name!r}")
    recipe.make_problem()
    if recipe.imitation is not None:
        recipe.make_teacher()
    ranges = recipe.search.ranges.items() if recipe.search else ()
    ends = [recipe.with_draw({name: float(bounds[end]) for name, bounds in ranges}) for end in (0, 1) if ranges]
    for each in (recipe, *ends):
        with BoundedWeights():
            each.make_optimizer()
    return recipe
