"""Recipes: those that come with the kit can be followed, and mistakes in one are named."""

import json
import tomllib
from copy import deepcopy
from dataclasses import replace
from functools import reduce
from operator import getitem

import pytest
import torch

from l2l_kit.errors import UnknownNameError
from l2l_kit.making.recipes import Search, find_recipe, read_recipes
from l2l_kit.making.sweeps import read_sweep
from l2l_kit.paths import RECIPES, SWEEPS
from l2l_kit.training import MetaTraining

VALID = """
[problem]
name = "quadratics"
dim = 3

[optimizer]
hidden_size = 5
preprocessing = "log-sign"

[training]
horizon = 10
unroll = 5

[search]
trials = 4
epochs = 2
meta_lr = [1e-3, 1e-1]
"""
KIT = sorted(path.stem for path in RECIPES.glob("*.toml"))


def read(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return read_recipes(path)


@pytest.mark.parametrize("name", KIT)
def test_a_recipe_of_the_kit_can_be_followed(name):
    for recipe in read_recipes(name):
        assert find_recipe(recipe.name) == recipe, "another recipe makes an optimizer of that name"
        config = json.loads(json.dumps(recipe.make_problem().config()))
        assert config == {**config, **recipe.problem}
        assert recipe.make_optimizer().config()["kind"] == recipe.optimizer.get("kind", "lstm")


def test_what_a_recipe_of_the_kit_starts_from_fits():
    starting = [recipe for file in KIT for recipe in read_recipes(file) if recipe.start]
    assert starting
    for recipe in starting:
        first = find_recipe(recipe.start)
        assert first.start != recipe.name
        weights = first.make_optimizer().state_dict()
        for name, weight in replace(recipe, initial=weights).make_optimizer().state_dict().items():
            assert torch.equal(weight, weights[name])
        if first.problem["name"] == recipe.problem["name"]:
            assert first.training.seed != recipe.training.seed  # else it would train on the same optimizees again


def test_a_recipe_says_all_that_is_in_the_file(tmp_path):
    (recipe,) = read(tmp_path, VALID)
    assert recipe.name == "mine"
    assert recipe.make_problem().config() == {"name": "quadratics", "dim": 3}
    assert recipe.make_optimizer().config()["hidden_size"] == 5
    assert recipe.training == MetaTraining(horizon=10, unroll=5)
    assert recipe.search == Search(4, 2, [1e-3, 1e-1])
    (recipe,) = read(tmp_path, VALID.partition("[search]")[0])
    assert recipe.search is None


def test_a_grid_makes_a_family(tmp_path):
    grid = '\n[grid]\n"optimizer.preprocessing" = ["none", "log-sign"]\n"training.unroll" = [1, 5, 10]\n'
    family = read(tmp_path, 'name = "{preprocessing}-{unroll}"\n' + VALID + grid)
    assert [recipe.name for recipe in family] == [
        f"{preprocessing}-{unroll}" for preprocessing in ("none", "log-sign") for unroll in (1, 5, 10)
    ]
    for recipe in family:
        preprocessing, _, unroll = recipe.name.rpartition("-")
        assert recipe.make_optimizer().preprocessing.name == preprocessing
        assert recipe.training == MetaTraining(horizon=10, unroll=int(unroll))


def test_a_grid_reaches_settings_of_settings(tmp_path):
    grid = '\n[grid]\n"optimizer.preprocessing.factor" = [10, 100]\n'
    scaled = VALID.replace('"log-sign"', '{ name = "scale" }')
    family = read(tmp_path, 'name = "times-{factor}"\n' + scaled + grid)
    assert [(each.name, each.make_optimizer().preprocessing.factor) for each in family] == [
        ("times-10", 10),
        ("times-100", 100),
    ]


def with_grid(name, grid):
    return ("\n[problem]", f'name = "{name}"\n[grid]\n{grid}\n[problem]')


MISTAKES = {
    "not TOML": ("[problem", "]", "not a valid recipe"),
    "unknown section": ("[training]", "[trainig]", "unknown section 'trainig'. Did you mean 'training'"),
    "unknown setting": ("unroll", "unrol", "unknown training setting 'unrol'. Did you mean 'unroll'"),
    "unknown problem": ('"quadratics"', '"quadratic"', "unknown problem 'quadratic'. Did you mean 'quadratics'"),
    "unknown field of the problem": ("dim", "dims", "dims"),
    "unknown search setting": ("[search]", "[search]\ntirals = 9", "search setting 'tirals'. Did you mean 'trials'"),
    "unknown open setting": ("[search]", "[search]\noptimizer = { bias = [0, 1] }", "bias"),
    "open bounds reversed": ("[search]", "[search]\noptimizer = { forget_bias = [4, 1] }", "0 <= low <= high"),
    "lost section": ('[problem]\nname = "quadratics"\ndim = 3\n', "", "'problem'"),
    "unroll over horizon": ("unroll = 5", "unroll = 11", "unroll 11 is longer than the horizon 10"),
    "open setting of whole numbers": ("[search]", "[search]\noptimizer = { hidden_size = [2, 4] }", "whole number"),
    "open setting whose upper bound is too high": ("[search]", "[search]\noptimizer.forget_bias = [0, inf]", "inf"),
    "unknown optimizer setting": ("hidden_size", "hiden_size", "setting 'hiden_size'. Did you mean 'hidden_size'?"),
    "unknown setting of a group": (
        'hidden_size = 5\npreprocessing = "log-sign"',
        'kind = "groups"\ngroups.fc = { seeed = 1 }',
        "'seed'?",
    ),
    "no groups": ('hidden_size = 5\npreprocessing = "log-sign"', 'kind = "groups"', "at least one kind's LSTM"),
    "unknown setting of preprocessing": ('"log-sign"', '{ name = "scale", factr = 3 }', "Did you mean 'factor'?"),
    "lost search setting": ("trials = 4\n", "", "search: 'trials' is missing"),
    "no teacher": ("[search]", "[imitation]\n[search]", "imitation: 'teacher' is missing"),
    "teacher without a rate": ("[search]", '[imitation]\nteacher.name = "adam"\n[search]', "teacher: 'lr' is missing"),
    "unknown setting of a teacher": (
        "[search]",
        '[imitation]\nteacher.fc = { name = "adam", l = 1 }\n[search]',
        "unknown teacher.fc setting 'l'. Did you mean 'lr'?",
    ),
    "no trials": ("trials = 4", "trials = 0", "search: trials must be a whole number of at least 1, got 0"),
    "bound of zero": ("[1e-3, 1e-1]", "[0, 1e-1]", "0 < low <= high"),
    "grid of an unknown setting": (*with_grid("{x}", '"training.x" = [1]'), "setting 'x'"),
    "grid with a placeholder that is none": (*with_grid("{x}", '"training.unroll" = [1, 5]'), "x"),
    "grid whose members have one name": (*with_grid("one", '"training.unroll" = [1, 5]'), "one"),
}


def test_a_member_of_a_family_has_a_name_of_its_own():
    assert read_recipes("mnist-none-unroll5") == [find_recipe("mnist-none-unroll5")]


@pytest.mark.parametrize(("right", "wrong", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named(tmp_path, right, wrong, message):
    assert VALID.count(right) >= 1
    with pytest.raises(ValueError, match=r"mine\.toml: not a valid recipe: .") as caught:
        read(tmp_path, VALID.replace(right, wrong, 1))
    assert message in str(caught.value)


def values_of(table, *path):
    """Where each value of nested tables is, the tables themselves included."""
    for name, value in table.items():
        yield (*path, name), value
        if isinstance(value, dict):
            yield from values_of(value, *path, name)


PLANS = [(RECIPES, name, read_recipes) for name in ("quadratics", "cifar", "mnist-scale")]
PLANS += [(SWEEPS, name, read_sweep) for name in ("quadratics-today", "cifar2")]


@pytest.mark.parametrize(("folder", "name", "read_it"), PLANS, ids=[name for _, name, _ in PLANS])
def test_a_value_of_another_type_is_named(monkeypatch, folder, name, read_it):
    content = tomllib.loads((folder / f"{name}.toml").read_text(encoding="utf-8"))
    for path, value in values_of(content):
        for wrong in ("x", 3, [], {"y": 1}):
            one_bias = wrong == 3 and path[-1] == "forget_bias"  # which may be a number or two
            if one_bias or type(wrong) is type(value) or (wrong == 3 and isinstance(value, float)):
                continue
            changed = deepcopy(content)
            reduce(getitem, path[:-1], changed)[path[-1]] = wrong
            monkeypatch.setattr("l2l_kit.making.plans.tomllib.loads", lambda _, changed=changed: changed)
            with pytest.raises(ValueError, match="not a valid") as caught:
                read_it(name)
            assert path[-1] in str(caught.value) or repr(wrong) in str(caught.value), f"{path}: {caught.value}"


@pytest.mark.parametrize("find", [read_recipes, find_recipe])
def test_an_unknown_recipe_gives_the_near_match(find):
    with pytest.raises(UnknownNameError, match="Did you mean 'quadratics-log-sign-unroll5'"):
        find("quadratics-log-sign-unroll55")
