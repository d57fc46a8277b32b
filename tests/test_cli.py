"""The command line as a user meets it: real commands on small problems, and errors of one line."""

import errno
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from l2l_kit import cli, zoo
from l2l_kit.evaluation import AVERAGED, EACH_STEP, ONE_RATE, read_result, results
from l2l_kit.making.lessons import Lesson
from l2l_kit.optimizers import BASELINES
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


def l2l(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.mark.usefixtures("forked_workers")
def test_train_makes_every_member_of_a_recipe_and_its_records_as_search_does_and_again_changes_nothing(
    tmp_path: Path,
) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    arguments = (tmp_path / "tiny.toml", "--data", tmp_path, "--device", "cpu")
    l2l("train", *arguments, "--jobs", 2)
    for unroll in (2, 5):
        name = f"tiny-unroll{unroll}"
        card, trials = zoo.card(tmp_path / "pretrained" / name), read_result(f"search/{name}", tmp_path / "results")
        assert zoo.load(tmp_path / "pretrained" / name).hidden_size == 4
        assert card["training"]["meta_lr"] == pytest.approx(trials["meta_lr"][0], rel=1e-5)
        assert card["trained"]["episodes"] == 4
        assert len(trials) == 2
        assert len(read_result(f"training/{name}", tmp_path / "results")) == 3
    made = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.suffix in (".csv", ".safetensors")}
    l2l("train", *arguments)
    assert "best first" in l2l("search", *arguments).output
    assert all(path.read_bytes() == content for path, content in made.items())
    assert (tmp_path / "cache" / "runs" / name / "search-meta_lr.png").read_bytes().startswith(b"\x89PNG")


def test_tune_records_several_lengths_and_as_many_rates_as_asked_for(tmp_path: Path) -> None:
    settings = ("-p", "dim=2", "--tasks", 8, "--rates", 2, "--data", tmp_path, "--device", "cpu")
    output = l2l("tune", "quadratics", "--steps", 6, "--steps", 3, *settings).output
    table = read_result("quadratics/tuning", tmp_path / "results")
    assert table.groupby(["baseline", "step"], sort=False)["lr"].count().to_dict() == {
        (name, step): 5 * 2 + 1 for name in BASELINES for step in (3, 6)
    }
    for name in BASELINES.values():
        assert [line.split()[3] for line in output.splitlines() if f" {name} " in line] == ["6", "3"]
    assert table.attrs["steps"] == [3, 6]


def test_what_is_printed_of_a_path_is_the_path(tmp_path: Path) -> None:
    folder = tmp_path / "[red]" / "[/a]"
    output = l2l("tune", "quadratics", *SMALL, "--rates", 1, "--data", folder, "--device", "cpu").output
    assert str(folder) in output.replace("\n", "")


OWN = """
import torch
from l2l_kit.problems import Problem, register

def init(generator):
    return {"x": torch.randn(2, generator=generator)}, {}

bowl = register(Problem.from_functions("bowl", init, lambda params, data: params["x"].square().sum()))
"""


def test_compare_asks_for_the_tuning_of_the_problem_and_tells_all_optimizers_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_bowl.py").write_text(OWN)
    bowl = f"{tmp_path / 'own_bowl.py'}:bowl"
    l2l("tune", bowl, "--steps", 1, "--tasks", 2, "--rates", 1, "--data", tmp_path)
    monkeypatch.setattr(results.read_result, "__defaults__", (tmp_path / "results",))
    assert " Adam " in l2l("compare", "adam", "--problem", bowl, "--tasks", 2, "--steps", 1).output
    assert "Adam, tuned for 1 steps" in l2l("compare", "adam", "--problem", bowl, "--tasks", 2, "--steps", 2).output
    l2l("tune", "quadratics", "-p", "dim=3", "--steps", 1, "--tasks", 2, "--rates", 1, "--data", tmp_path)
    assert "its rate was tuned for dim 3" in l2l("compare", "adam", *SMALL, code=2).stderr
    assert (
        "other settings: problem {'dim': 3}, not {'dim': 2}"
        in l2l("tune", "quadratics", *SMALL, "--rates", 1, "--data", tmp_path, code=2).stderr
    )
    for name in ("mine-0.5", "mine-0.7", "other/mine-0.5"):
        zoo.save(zoo.load("quadratics"), tmp_path / f"{name}.safetensors")
    paths = [tmp_path / f"mine-0.{digit}.safetensors" for digit in (5, 7)]
    output = l2l("compare", *paths, *SMALL).output
    assert " mine-0.5 " in output
    assert " mine-0.7 " in output
    assert "'mine-0.5'" in l2l("compare", *paths, tmp_path / "other" / paths[0].name, *SMALL, code=2).stderr


def test_what_is_missing_of_a_problem_of_ones_own_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "own_dish.py"
    file.write_text(OWN.replace("bowl", "dish"))
    for optimizer, problem, message in (
        (
            "adam",
            f"{file}:dish",
            f"adam: no rate is recorded for dish. Give one, such as adam=0.1, or find it by `l2l tune {file}",
        ),
        ("adam=1", f"{file}:dishes", f"unknown problem registered in {file} 'dishes'. Did you mean 'dish'? Known: "),
        ("adam=1", file, f"Add the name under which it is registered, {file}:name"),
    ):
        assert message in l2l("compare", optimizer, "--problem", problem, code=2).stderr


def test_sweep_records_all_settings_in_their_order_and_again_runs_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "swept.toml").write_text(SWEEP)
    arguments = ("sweep", tmp_path / "swept.toml", "--device", "cpu", "--data", tmp_path)
    l2l(*arguments, "--jobs", 2)
    lines = capfd.readouterr().out.splitlines()  # workers print for themselves
    table = read_result("sweeps/swept", tmp_path / "results")
    assert list(zip(table["dim"], table["protocol"], table["step"], table["optimizer"], strict=True)) == [
        (dim, protocol, step, name)
        for dim in (2, 3, 4)
        for protocol, steps in ((ONE_RATE, (2, 4)), (EACH_STEP, (2, 4)), (AVERAGED, (4,)))
        for step in steps
        for name in ("LSTM", "SGD", "Adam")
    ]
    assert (table.attrs["learned"], table.attrs["grid"]) == ({"LSTM": "quadratics"}, {"dim": [2, 3, 4]})
    assert {label: len(tried) for label, tried in table.attrs["tried"].items()} == {"SGD": 3, "Adam": 3}
    assert {"{'dim': 2}: LSTM, test", "{'dim': 4}: Adam 0.1, tuning"} < set(lines)
    recorded = tmp_path / "results" / "sweeps" / "swept.csv"
    before = recorded.read_bytes()
    assert not [line for line in l2l(*arguments).output.splitlines() if line.startswith("{")]
    assert recorded.read_bytes() == before
    l2l(*arguments[:-1], tmp_path / "alone")
    assert (tmp_path / "alone" / "results" / "sweeps" / "swept.csv").read_bytes() == before


def test_fields_of_a_problem_are_written_as_in_python() -> None:
    settings = ["hidden=20,30", "activation=relu", "init_scale=1e-3", "batch_size=64", "source=embedded"]
    fields = {"hidden": (20, 30), "activation": "relu", "init_scale": 0.001, "batch_size": 64, "source": "embedded"}
    assert cli._problem("mnist", settings) == MNIST(**fields)
    assert cli._problem("mnist", ["hidden=20,", "source=embedded"]).hidden == (20,)


def test_zoo_lists_the_pretrained_optimizers_whether_their_training_is_known_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = l2l("zoo").output
    assert all(f" {name} " in output for name in zoo.names())
    first = output.index("recommended", output.index("trained on mnist"))
    assert output.index(" mnist ") < first < output.index(" mnist-log-sign-unroll5 ")
    (failed,) = [line for line in output.splitlines() if " mnist-none-unroll5 " in line]
    assert "failed: no better than guessing" in failed
    (imitation,) = [line for line in output.splitlines() if " cifar " in line and "recommended" in line]
    assert " 0 of 16 " in imitation  # episodes of the weights that were kept
    rule = zoo.load("quadratics")
    monkeypatch.setattr(zoo, "PRETRAINED", tmp_path)
    zoo.save(rule, tmp_path / "bare")
    assert "bare" in l2l("zoo").output
    (tmp_path / "broken.safetensors").write_bytes(b"junk")
    result = l2l("zoo", code=2)
    assert "bare" in result.stdout
    assert "broken.safetensors: not a whole safetensors file" in result.stderr
    for module in (zoo, cli):
        monkeypatch.setattr(module, "PRETRAINED", tmp_path / "empty")
    assert f"none in {tmp_path / 'empty'}" in l2l("zoo").output


@pytest.mark.parametrize(("error", "code"), [(None, 0), ("cell 3: no", 1)])
def test_reproduce_tells_each_lesson_and_where_the_report_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str | None, code: int
) -> None:
    def execute(*_: object, on_lesson, **__: object) -> list[Lesson]:
        lesson = Lesson(Path("01_one.ipynb"), "One", 12.3, error=error)
        on_lesson(lesson)
        return [lesson]

    monkeypatch.setattr(cli, "execute_lessons", execute)
    monkeypatch.setenv("L2L_DATA_DIR", str(tmp_path))  # where there are no checksums to compute
    output = l2l("reproduce", "--out", tmp_path, "--data", tmp_path, code=code).output
    assert f"01_one: {f'failed after 12 s: {error}' if error else 'done in 12 s'}\n" in output
    assert f"report: {tmp_path / 'report.html'}" in output
    result = l2l("reproduce", "--out", tmp_path, "--data", tmp_path, "--record", code=2 * code)
    assert ("01_one failed" in result.stderr) == bool(error)
    assert (tmp_path / "results" / "reproduce" / "claims.csv").exists() != bool(error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "quadratic"), "Did you mean 'quadratics'?"),
        (("compare", "adam", "--problem", "quadratic"), "Did you mean 'quadratics'?"),
        (("compare", "adam", "-p", "dim"), "name=value"),
        (("compare", "adam=", *SMALL), "adam=: needs a positive number, such as adam=0.1"),
        (("compare", "adam=x", *SMALL), "adam=x: needs a positive number, such as adam=0.1"),
        (("compare", "adamm", *SMALL), "unknown optimizer 'adamm'. Did you mean 'adam'?"),
        (("compare", "quadratics", "muon", *SMALL), "muon: no rate is recorded for it. Give one, such as muon=0.1"),
        (("compare", "", *SMALL), "expected a file's name"),
        (("reproduce", "-p", "profile=fulll"), "give --profile fulll"),
        (("reproduce", "-p", "seed=-1"), "parameter seed must be at least 0, got -1"),
        (("compare", "quadratics", "admaw=0.1", *SMALL), "unknown baseline 'admaw'. Did you mean 'adamw'?"),
        (("compare", "quadratics", "--problem", "{folder}/mine.v2.py:mine"), "Use letters, digits and underscores"),
        (("compare", "quadratics", "--problem", "{folder}/divides.py:mine"), "divides.py, line 2: ZeroDivisionError"),
        (("compare", "quadratics", "--problem", "{folder}/unfinished.py:mine"), "unfinished.py, line 3: SyntaxError"),
        (("compare", "quadratics", "-p", "name=mnist"), "-p name=mnist: choose the problem itself"),
        (("tune", "quadratics", "-p", "dim=0"), "at least 1"),
        (("compare", "adam", "--problem", "mnist", "-p", "hidden=twenty"), "got 'twenty'"),
        (("fetch", "minst"), "Did you mean 'mnist'?"),
        (("tune", "quadratics", "--steps", "0"), "--steps"),
        (("sweep", "mnist-figure7"), "unknown sweep 'mnist-figure7'"),
        (("sweep", "mnist-figure6", "--only", "adam"), "Did you mean 'Adam'?"),
        (("train", "quadratic"), "Did you mean 'quadratics'?"),
        (("reproduce", "--profile", "fast"), "--profile"),
        (("reproduce", "--lesson", "02", "-p", "sed=1"), "Did you mean 'seed'?"),
        (("reproduce", "--lesson", "02", "-p", "unroll=many"), "must be of type int, got 'many'"),
        *(
            ((*command, "--device", "gpu"), "there is no device 'gpu'")
            for command in (
                *(("train", "quadratics"), ("search", "quadratics"), ("tune", "quadratics"), ("compare", "quadratics")),
                *(("sweep", "mnist-figure6"), ("reproduce",)),
            )
        ),
        (("search", "mnist"), "recipe 'mnist' has no [search] section"),
        (("search", "quadratics", "--storage", "postgresql://me:secret@host:port/x"), "postgresql://user@host:port/"),
        (("search", "quadratics", "--storage", "nonsense://me:secret@host/x"), "postgresql://user@host:port/name"),
        (("search", "quadratics", "--storage", "mysql://me:secret@host/x"), "postgresql://user@host:port/name"),
        (("search", "quadratics", "--storage", "{folder}"), "unable to open database file"),
        (("compare", "{folder}/junk.safetensors"), "not a whole safetensors file"),
        (("train", "nothing.toml"), "nothing.toml: there is no such file"),
        (("train", "{folder}/junk.toml"), "not a valid recipe"),
        (("train", "{folder}/empty.toml"), "'training' is missing"),
        (("train", "quadratics", "--data", "{folder}/junk.toml"), "{folder}/junk.toml"),
        (("fetch", "mnist"), "L2L_DATA_DIR"),
    ],
)
def test_bad_input_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr("l2l_kit.data.download", lambda _: {})
    monkeypatch.setenv("L2L_DATA_DIR", str(tmp_path / "junk.toml"))
    files = {
        "junk.toml": "a = [",
        "empty.toml": "",
        "mine.v2.py": "",
        "divides.py": "\n1 / 0",
        "unfinished.py": "\n\nf(",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    result = l2l(*(argument.format(folder=tmp_path) for argument in arguments), code=2)
    assert message.format(folder=tmp_path) in result.stderr
    assert "secret" not in result.output
    if not result.stderr.startswith("Usage"):  # typer draws a box
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [(KeyboardInterrupt("where it was"), 130, "stopped. where it was"), (ImportError("no [x]"), 2, "error: no [x]")],
)
def test_ctrl_c_and_a_missing_package_are_one_line_too(monkeypatch, raised, code, said) -> None:
    def raises() -> None:
        raise raised

    monkeypatch.setattr(zoo, "names", raises)
    assert l2l("zoo", code=code).stderr == f"{said}\n"


def test_a_reader_that_has_enough_is_no_error(monkeypatch) -> None:
    """Such as head."""

    def raises() -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(zoo, "names", raises)
    assert l2l("zoo", code=1).stderr == ""
