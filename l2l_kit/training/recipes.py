"""Recipes: files that say how a pretrained optimizer was made, so that one command makes it again.

A recipe is a TOML file with the sections ``[problem]``, ``[optimizer]`` and ``[training]`` (the arguments of
`problems.make`, `optimizers.make` and `MetaTraining`), and optionally ``[search]`` (how the meta-learning rate, and
what else ``[search.optimizer]`` leaves open, is searched) and ``[grid]``: lists of values, such as
``"training.unroll" = [1, 20]``, that turn it into a family.
With ``[imitation]``, the arguments of `Imitation` and those of a baseline under ``teacher`` (or one for each kind of
parameter), the optimizer imitates that baseline before it is meta-trained.
With ``start`` it names another recipe, from whose optimizer the training goes on.
"""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from l2l_kit import optimizers, problems
from l2l_kit.errors import UnknownNameError
from l2l_kit.optimizers import Baseline, UpdateRule, baseline
from l2l_kit.paths import RECIPES, toml_file
from l2l_kit.problems import Problem
from l2l_kit.storage import BoundedWeights, load_weights
from l2l_kit.training.imitation import GroupedBaselines, Imitation
from l2l_kit.training.meta_training import MetaTraining


@dataclass(frozen=True)
class Search:
    """Random search of the meta-learning rate, as in the paper: short runs, the best final validation loss wins.

    Attributes:
        trials: number of runs.
        epochs: length of each.
        meta_lr: bounds between which its logarithm is drawn uniformly.
        optimizer: bounds of other settings that are open, by their names in ``[optimizer]``; if the lower one is above
            0, their logarithm is drawn uniformly, else they themselves.
        prune: give a trial up once it is worse than the median of the others after as many epochs. Which ones that
            meets depends on the order in which trials end: the same each time in one process, but not in several.
    """

    trials: int
    epochs: int
    meta_lr: tuple[float, float]
    optimizer: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    prune: bool = False

    def __post_init__(self) -> None:
        (low, high), others = self.meta_lr, self.optimizer.values()
        if self.trials < 1 or self.epochs < 1 or not 0 < low <= high or any(not 0 <= a <= b for a, b in others):
            raise ValueError(
                "search: trials and epochs must be at least 1, 0 < low <= high for meta_lr and 0 <= low <= high for "
                f"others, got {self}."
            )

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
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
        """The hand-designed optimizer that is imitated: one, or one for each kind of parameter."""
        if "name" in self.teacher:
            return baseline(**self.teacher)
        return GroupedBaselines({kind: baseline(**arguments) for kind, arguments in self.teacher.items()})

    def with_draw(self, drawn: Mapping[str, float]) -> Recipe:
        """This recipe with values for what its search leaves open: `meta_lr`, and settings of the optimizer."""
        settings = {name: value for name, value in drawn.items() if name != "meta_lr"}
        return replace(
            self,
            training=replace(self.training, meta_lr=drawn["meta_lr"]),
            optimizer={**self.optimizer, **settings},
        )


MOST_MEMBERS = 1000
"""In a grid: more would not be trained in a lifetime."""
_SECTIONS = ("name", "start", "problem", "optimizer", "imitation", "training", "search", "grid")


def read_recipes(name_or_path: str | Path) -> list[Recipe]:
    """The recipes in a file: one, or the whole family where it has a grid.

    Args:
        name_or_path: a recipe of data/recipes by name, or a path to a TOML file.

    Raises:
        UnknownNameError: if there is no such recipe; the message offers the nearest one.
        ValueError: if the file is no valid recipe; the message says which part is wrong.
    """
    path = toml_file("recipe", name_or_path, RECIPES)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        for section in content:
            if section not in _SECTIONS:
                raise UnknownNameError("section", section, _SECTIONS)
        recipes = [_recipe(member, path.stem) for member in _members(content)]
        if len({recipe.name for recipe in recipes}) < len(recipes):
            raise ValueError(f"several members of its grid have the name {recipes[0].name!r}; use placeholders in it")
        return recipes
    except KeyError as error:
        raise ValueError(f"{path}: not a valid recipe: {error} is missing.") from error
    except Exception as error:  # a file can be wrong in any way
        raise ValueError(f"{path}: not a valid recipe: {error}") from error


def find_recipe(name: str) -> Recipe:
    """The recipe of a pretrained optimizer, alone in its file or a member of a family.

    Raises:
        UnknownNameError: if no file of data/recipes makes an optimizer of that name; the message offers the nearest.
    """
    known = {recipe.name: recipe for path in sorted(RECIPES.glob("*.toml")) for recipe in read_recipes(path)}
    if name not in known:
        raise UnknownNameError("pretrained optimizer with a recipe", name, known)
    return known[name]


def _members(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The recipe once for each combination of the grid's values, with the name's placeholders filled in."""
    grid = content.pop("grid", {})
    if (size := math.prod(map(len, grid.values()))) > MOST_MEMBERS:
        raise ValueError(f"its grid has {size} members; at most {MOST_MEMBERS} are possible")
    members = []
    for values in itertools.product(*grid.values()):
        member = deepcopy(content)
        chosen = {}
        for key, value in zip(grid, values, strict=True):
            section, _, field = key.partition(".")
            member[section][field] = chosen[field] = value
        if chosen:
            member["name"] = re.sub(r"{(\w+)}", lambda key: str(chosen[key[1]]), member["name"])  # noqa: B023
        members.append(member)
    return members


def _recipe(content: dict[str, Any], default_name: str) -> Recipe:
    teacher = content.get("imitation", {}).pop("teacher", {})
    for section, kind in (("training", MetaTraining), ("search", Search), ("imitation", Imitation)):
        known = [each.name for each in fields(kind)]
        for setting in content.get(section, {}):
            if setting not in known:
                raise UnknownNameError(f"{section} setting", setting, known)
    search = content.get("search")
    if search is not None:
        opened = {name: _bounds(bounds) for name, bounds in search.get("optimizer", {}).items()}
        search = Search(**{**search, "meta_lr": _bounds(search["meta_lr"]), "optimizer": opened})
    recipe = Recipe(
        content.get("name", default_name),
        content["problem"],
        content["optimizer"],
        MetaTraining(**content["training"]),
        search,
        Imitation(**content["imitation"]) if "imitation" in content else None,
        teacher,
        content.get("start"),
    )
    if not re.fullmatch(r"\w[\w.-]*", recipe.name):
        raise ValueError(f"its name names files, of letters, digits, '-', '_' and '.', got {recipe.name!r}")
    recipe.make_problem()
    if recipe.imitation is not None:
        recipe.make_teacher()
    drawn = [] if search is None else [recipe.with_draw({name: low for name, (low, _) in search.ranges.items()})]
    for each in (recipe, *drawn):
        with BoundedWeights():
            each.make_optimizer()
    return recipe


def _bounds(bounds: list[float]) -> tuple[float, float]:
    low, high = bounds
    return float(low), float(high)
