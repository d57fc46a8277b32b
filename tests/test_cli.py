"""The command line as a user meets it: real commands on small problems, and errors of one line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from l2l_kit import cli, zoo
from l2l_kit.cli import app
from l2l_kit.evaluation import EACH_STEP, ONE_RATE, read_result
from l2l_kit.paths import RESULTS
from l2l_kit.problems import MNIST

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


SWEEP = """
steps = [2, 4]
num_tasks = 3
tuning_tasks = 2

[learned]
LSTM = "quadratics"

[problem]
name = "quadratics"

[grid]
dim = [2, 3, 4]

[baselines]
SGD = { name = "sgd", learning_rates = [0.03, 0.1] }
Adam = { name = "adam", learning_rates = [0.1] }
"""


SMALL = ("-p", "dim=2", "--tasks", "2", "--steps", "1")


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


def test_search_records_the_trials_that_train_then_uses(tmp_path: Path, recipe: Path) -> None:
    arguments = (recipe, "--only", "tiny-unroll2", "--data", tmp_path, "--device", "cpu")
    result = l2l("search", *arguments)
    assert result.exit_code == 0, result.output
    assert "best first" in result.output
    recorded = tmp_path / "results" / "search" / "tiny-unroll2.csv"
    before = recorded.read_bytes()
    assert l2l("train", *arguments).exit_code == 0
    assert recorded.read_bytes() == before, "the same trials, not run again"
    picture = tmp_path / "cache" / "runs" / "tiny-unroll2" / "search-meta_lr.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_tune_records_the_grid(tmp_path: Path) -> None:
    result = l2l("tune", "quadratics", "-p", "dim=2", "--steps", 5, "--tasks", 8, "--data", tmp_path, "--device", "cpu")
    assert result.exit_code == 0, result.output
    table = read_result("quadratics/tuning", tmp_path / "results")
    assert set(table["baseline"]) == {"sgd", "nag", "rmsprop", "adam"}
    assert set(table["step"]) == {5}
    assert len(table) == 4 * 41


def test_tune_notes_several_lengths_and_as_many_rates_as_asked_for(tmp_path: Path) -> None:
    settings = ("-p", "dim=2", "--tasks", 8, "--rates", 2, "--data", tmp_path, "--device", "cpu")
    result = l2l("tune", "quadratics", "--steps", 6, "--steps", 3, *settings)
    assert result.exit_code == 0, result.output
    table = read_result("quadratics/tuning", tmp_path / "results")
    assert list(table.columns) == ["lr", "step", "mean", "median", "baseline"]
    assert table.groupby(["baseline", "step"], sort=False)["lr"].count().to_dict() == {
        (name, step): 5 * 2 + 1 for name in ("sgd", "nag", "rmsprop", "adam") for step in (3, 6)
    }
    for name in ("SGD", "NAG", "RMSprop", "Adam"):
        assert [line.split()[3] for line in result.output.splitlines() if f" {name} " in line] == ["6", "3"]
    assert json.loads((tmp_path / "results" / "quadratics" / "tuning.json").read_text())["steps"] == [6, 3]


@pytest.mark.parametrize("jobs", [1, 2])
def test_sweep_records_all_settings_in_their_order(tmp_path: Path, jobs: int) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(SWEEP)
    result = l2l("sweep", path, "--data", tmp_path, "--jobs", jobs, "--device", "cpu")
    assert result.exit_code == 0, result.output
    recorded = tmp_path / "results" / "sweeps" / "tiny.csv"
    table = read_result("sweeps/tiny", tmp_path / "results")
    assert list(zip(table["dim"], table["protocol"], table["step"], table["optimizer"], strict=True)) == [
        (dim, protocol, step, name)
        for dim in (2, 3, 4)
        for protocol in (ONE_RATE, EACH_STEP)
        for step in (2, 4)
        for name in ("LSTM", "SGD", "Adam")
    ]
    about = json.loads(recorded.with_suffix(".json").read_text())
    assert about["learned"] == {"LSTM": "quadratics"}
    assert about["grid"] == {"dim": [2, 3, 4]}
    assert (about["num_tasks"], about["tuning_tasks"], about["seed"]) == (3, 2, 0)
    for label in ("SGD", "Adam"):
        assert len(about["tried"][label]) == 3, "for each setting the learning rates"
    pieces = list((tmp_path / "cache" / "runs" / "sweeps").iterdir())
    lines = result.output.splitlines()
    assert sum(line.startswith("{'dim': ") for line in lines) == len(pieces)
    assert "{'dim': 2}: LSTM, test" in lines
    assert "{'dim': 4}: Adam 0.1, tuning" in lines


def test_sweep_again_changes_nothing_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(SWEEP)
    assert l2l("sweep", path, "--data", tmp_path).exit_code == 0
    recorded = tmp_path / "results" / "sweeps" / "tiny.csv"
    before = recorded.read_bytes()
    monkeypatch.setattr("l2l_kit.evaluation.sweep.measured", None)
    assert l2l("sweep", path, "--data", tmp_path).exit_code == 0
    assert recorded.read_bytes() == before


def test_some_optimizers_of_a_sweep_can_be_run_beforehand(tmp_path: Path) -> None:
    """The baselines, before what they are compared with is trained, and into a folder that is kept."""
    path, pieces = tmp_path / "tiny.toml", tmp_path / "kept"
    path.write_text(SWEEP.replace('"quadratics"', '"quadratic"', 1))
    arguments = ("sweep", path, "--data", tmp_path, "--pieces", pieces)
    assert l2l(*arguments, "--only", "Adam", "--only", "SGD").exit_code == 0
    assert not (tmp_path / "results").exists()
    path.write_text(SWEEP)
    result = l2l(*arguments)
    assert [line for line in result.output.splitlines() if line.startswith("{")] == [
        f"{{'dim': {dim}}}: LSTM, test" for dim in (2, 3, 4)
    ]
    assert (tmp_path / "results" / "sweeps" / "tiny.csv").exists()
    result = l2l(*arguments, "--only", "adam")
    assert result.exit_code == 2
    assert "unknown optimizer of sweep 'tiny' 'adam'. Did you mean 'Adam'" in result.output


def test_sweep_of_an_optimizer_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(SWEEP.replace('"quadratics"', '"quadratic"', 1))
    result = l2l("sweep", path, "--data", tmp_path)
    assert result.exit_code == 2
    assert "unknown pretrained optimizer 'quadratic'. Did you mean 'quadratics'?" in result.output


def test_compare_prints_and_writes_the_curves(tmp_path: Path) -> None:
    out = tmp_path / "curves.csv"
    result = l2l("compare", "quadratics", "adam", "sgd=0.01", "--tasks", 16, "--steps", 5, "--out", out)
    assert result.exit_code == 0, result.output
    assert "SGD 0.01" in result.output
    assert len(out.read_text().splitlines()) == 1 + 3 * 6


def test_fields_of_a_problem_are_written_as_in_python() -> None:
    settings = ["hidden=20,30", "activation=relu", "init_scale=1e-3", "batch_size=64", "source=embedded"]
    fields = {"hidden": (20, 30), "activation": "relu", "init_scale": 0.001, "batch_size": 64, "source": "embedded"}
    assert cli._problem("mnist", settings) == MNIST(**fields)
    assert cli._problem("mnist", ["hidden=20,", "source=embedded"]).hidden == (20,)


def test_compare_runs_networks_of_any_depth() -> None:
    settings = ("-p", "hidden=3,2", "-p", "batch_size=4", "-p", "source=embedded")
    result = l2l("compare", "adam=0.1", "--problem", "mnist", *settings, "--tasks", 2, "--steps", 2)
    assert result.exit_code == 0, result.output
    assert "Adam 0.1" in result.output


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
        (("compare", "adam", "--problem", "mnist", "-p", "hidden=20"), "such as (20,), got 20"),
        (("compare", "adam", "--problem", "mnist", "-p", "hidden=twenty"), "got 'twenty'"),
        (("fetch", "minst"), "Did you mean 'mnist'?"),
        (("fetch", "minst", "--list"), "Did you mean 'mnist'?"),
        (("tune", "quadratics", "--steps", "0"), "at least 1"),
        (("tune", "quadratics", "--rates", "0"), "--rates"),
        (("sweep", "mnist-figure7"), "unknown sweep 'mnist-figure7'"),
        (("train", "quadratic"), "Did you mean 'quadratics'?"),
        (("train", "quadratics", "--only", "quadratic"), "Did you mean 'quadratics'?"),
        (("reproduce", "--profile", "fast"), "profile"),
        (("reproduce", "--lesson", "99"), "unknown lesson"),
        (("reproduce", "--lesson", "01", "-p", "sed=1"), "Did you mean 'seed'?"),
        (("reproduce", "--lesson", "01", "-p", "seed=one"), "must be of type int"),
        (("reproduce", "--lesson", "01", "-p", "seed=-1"), "must be at least 0, got -1"),
        (("reproduce", "--lesson", "01", "-p", "unroll=101"), "at most 100, got 101"),
        (("reproduce", "--lesson", "02", "-p", "digits=ful"), "Did you mean 'full'?"),
        (("reproduce", "--device", "gpu"), "there is no device 'gpu'"),
        (("search", "quadratic"), "Did you mean 'quadratics'?"),
        (("search", "mnist"), "recipe 'mnist' has no [search] section"),
        (("compare", "adam", "--device", "meta", *SMALL), "there is no device 'meta'"),
        (("compare", "nothing.safetensors"), "there is no such file"),
        (("compare", "{folder}/junk.safetensors"), "not a whole safetensors file"),
        (("compare", "adam", *SMALL, "--out", "{folder}/junk.toml/curves.csv"), "{folder}/junk.toml"),
        (("compare", "adam", *SMALL, "--out", "{folder}"), "{folder}: Is a directory"),
        (("train", "nothing.toml"), "unknown recipe 'nothing.toml'"),
        (("train", "{folder}"), "unknown recipe"),
        (("train", "{folder}/junk.toml"), "not a valid recipe"),
        (("train", "{folder}/empty.toml"), "'problem' is missing"),
        (("train", "{folder}/bytes.toml"), "not a valid recipe"),
        (("train", "quadratics", "--data", "{folder}/junk.toml"), "{folder}/junk.toml"),
        (("train", "quadratics", "--device", "gpu"), "there is no device 'gpu'"),
        (("search", "quadratics", "--storage", "nonsense://x"), "postgresql://user@host:port/name"),
        (
            ("search", "quadratics", "--storage", "postgresql://me:secret@host:port/x"),
            "postgresql://user@host:port/name",
        ),
        (("search", "quadratics", "--storage", "{folder}"), "unable to open database file"),
        (("sweep", "{folder}/empty.toml"), "not a valid sweep"),
        (("gallery", "{folder}/junk.toml"), "{folder}/junk.toml"),
        (("fetch", "mnist"), "L2L_DATA_DIR"),
    ],
)
def test_bad_input_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr("l2l_kit.training.search.time.sleep", lambda _: None)
    monkeypatch.setattr("l2l_kit.data.request", lambda *_: {})
    monkeypatch.setattr("l2l_kit.data.packed", lambda *_: b"")
    monkeypatch.setenv("L2L_DATA_DIR", str(tmp_path / "junk.toml"))
    for name, content in {"junk.toml": b"a = [", "bytes.toml": b"name = '\xff'", "empty.toml": b""}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    result = l2l(*(argument.format(folder=tmp_path) for argument in arguments))
    assert result.exit_code == 2
    assert message.format(folder=tmp_path) in result.stderr
    assert "secret" not in result.output
    if not result.stderr.startswith("Usage"):  # typer draws a box
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1


def test_the_zoo_lists_an_optimizer_that_was_saved_without_a_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "PRETRAINED", tmp_path)
    zoo.save(zoo.load(Path(RESULTS.parent, "pretrained", "quadratics.safetensors")), tmp_path / "bare")
    result = l2l("zoo")
    assert result.exit_code == 0, result.output
    assert "bare" in result.output
