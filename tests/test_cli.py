"""The command line as a user meets it: real commands on small problems, and errors of one line."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from l2l_kit import zoo
from l2l_kit.cli import app
from l2l_kit.evaluation import read_result

RECIPE = """
name = "tiny-unroll{unroll}"

[grid]
"training.unroll" = [2, 5]

[problem]
name = "quadratics"
dim = 2

[optimizer]
hidden_size = 4

[training]
horizon = 10
epochs = 2
episodes_per_epoch = 2
batch_size = 4
validation_tasks = 8

[search]
trials = 2
epochs = 1
meta_lr = [1e-3, 1e-2]
"""


def l2l(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize("jobs", [1, 2])
def test_train_makes_every_member_of_a_recipe_and_its_records(tmp_path: Path, recipe: Path, jobs: int) -> None:
    result = l2l("train", recipe, "--data", tmp_path / "data", "--jobs", jobs, "--device", "cpu")
    assert result.exit_code == 0, result.output
    for unroll in (2, 5):
        name = f"tiny-unroll{unroll}"
        path = tmp_path / "data" / "pretrained" / f"{name}.safetensors"
        card, trials = zoo.card(path), read_result(f"search/{name}", tmp_path / "data" / "results")
        assert zoo.load(path).hidden_size == 4
        assert card["training"]["meta_lr"] == pytest.approx(trials["meta_lr"][0], rel=1e-5)
        assert card["trained"]["episodes"] == 4
        assert len(trials) == 2
        assert trials["validation_loss"].is_monotonic_increasing
        assert len(read_result(f"training/{name}", tmp_path / "data" / "results")) == 3


def test_train_again_changes_nothing(tmp_path: Path, recipe: Path) -> None:
    arguments = ("train", recipe, "--only", "tiny-unroll2", "--data", tmp_path, "--device", "cpu")
    path = tmp_path / "pretrained" / "tiny-unroll2.safetensors"
    assert l2l(*arguments).exit_code == 0
    before = path.read_bytes()
    assert l2l(*arguments).exit_code == 0
    assert path.read_bytes() == before


def test_tune_records_the_grid(tmp_path: Path) -> None:
    result = l2l("tune", "quadratics", "-p", "dim=2", "--steps", 5, "--tasks", 8, "--data", tmp_path, "--device", "cpu")
    assert result.exit_code == 0, result.output
    table = read_result("quadratics/tuning", tmp_path / "results")
    assert set(table["baseline"]) == {"sgd", "nag", "rmsprop", "adam"}


def test_compare_prints_and_writes_the_curves(tmp_path: Path) -> None:
    out = tmp_path / "curves.csv"
    result = l2l("compare", "quadratics", "adam", "sgd=0.01", "--tasks", 16, "--steps", 5, "--out", out)
    assert result.exit_code == 0, result.output
    assert "SGD 0.01" in result.output
    assert len(out.read_text().splitlines()) == 1 + 3 * 6


def test_zoo_lists_the_pretrained_optimizers() -> None:
    result = l2l("zoo")
    assert result.exit_code == 0
    assert "quadratics" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "quadratic"), "Did you mean 'quadratics'?"),
        (("compare", "adam=fast"), "fast"),
        (("compare", "adam", "--problem", "quadratic"), "Did you mean 'quadratics'?"),
        (("compare", "adam", "-p", "dim"), "name=value"),
        (("compare", "adam", "--tasks", "0"), "at least 1"),
        (("tune", "quadratics", "-p", "dim=0"), "at least 1"),
        (("train", "quadratic"), "Did you mean 'quadratics'?"),
        (("train", "quadratics", "--only", "quadratic"), "Did you mean 'quadratics'?"),
        (("reproduce", "--profile", "fast"), "profile"),
        (("reproduce", "--lesson", "99"), "unknown lesson"),
        (("reproduce", "--lesson", "01", "-p", "sed=1"), "Did you mean 'seed'?"),
        (("reproduce", "--lesson", "01", "-p", "seed=one"), "must be of type int"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: tuple[str, ...], message: str) -> None:
    result = l2l(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
