"""The command line: ``l2l train | search | tune | compare | sweep | reproduce | site | fetch | zoo``."""

from __future__ import annotations

import ast
import errno
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from l2l_kit import __version__, problems, zoo
from l2l_kit import data as data_sets
from l2l_kit.errors import DataError, UnknownNameError, WeightsFileError
from l2l_kit.evaluation import compare as run_comparison
from l2l_kit.evaluation import kept_episodes, provenance, read_result, summary, tally, tuned_baselines
from l2l_kit.evaluation.curves import Statistic
from l2l_kit.extras import needs
from l2l_kit.making.lessons import Lesson, execute_lessons, find_lessons
from l2l_kit.making.recipes import read_recipes
from l2l_kit.making.report import record_claims, write_report
from l2l_kit.making.runs import record_tuning
from l2l_kit.making.site import write_site
from l2l_kit.making.sweeps import read_sweep, run_sweep
from l2l_kit.making.train import search_recipe, train_recipe
from l2l_kit.making.work import cores, parallel_map
from l2l_kit.optimizers import BASELINES, Optimizer, baseline
from l2l_kit.optimizers.baselines import KINDS
from l2l_kit.paths import HOME, PRETRAINED, user_path
from l2l_kit.problems import Problem
from l2l_kit.processes import process_group, rank_and_world_size
from l2l_kit.storage import in_json, write_atomically
from l2l_kit.tensors import pick_device

# A pipe has no width: give it room, so that a name is never cut. Brackets in paths and messages are no markup.
console = Console(width=None if sys.stdout.isatty() else 160, markup=False)
complaints = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


class _OneLineErrors(TyperGroup):
    """The commands. What the user can mend is one line on standard error, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was chosen."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # whoever reads the output, such as head, has enough of it, which click knows to bear
            raise
        except (ValueError, ArithmeticError, OSError, ImportError) as error:
            text = _explained(error) if isinstance(error, OSError) and error.errno else str(error)
            complaints.print(Text("error:", "red"), text)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            complaints.print(f"stopped. {error}")
            raise typer.Exit(130) from error


def _explained(error: OSError) -> str:
    """Which file it was, what the system says, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "Make room there, or choose another place"
    elif error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        remedy = "Some network drives have no file locks: choose a place on another one"
    else:
        remedy = "Choose a place that can be read and written"
    return f"{error.filename or 'a file'}: {error.strerror}. {remedy} (an option of the command, or L2L_HOME)."


EXAMPLES = """
Examples:

l2l zoo  (which optimizers there are)

l2l compare mnist adam nag --problem mnist --tasks 16  (tuned baselines on the same 16 networks)

l2l compare quadratics adam=0.1 --steps 200

l2l reproduce --lesson 02  (one lesson, headless, with a report)

l2l fetch mnist  (the full data set)
"""

app = typer.Typer(
    cls=_OneLineErrors,
    help="Learning to learn by gradient descent by gradient descent.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"l2l_kit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
) -> None: ...


def _device(name: str | None) -> str | None:
    """A device that is there, before anything is computed."""
    pick_device(name)
    return name


Device = Annotated[str | None, typer.Option(callback=_device, help='"cpu" or "cuda"; the best there is if not given.')]
Seed = Annotated[int, typer.Option(help="Seed of all draws.")]
Jobs = Annotated[int, typer.Option(min=1, help="How many to run at once, the cores shared among them.")]
Tasks = Annotated[int, typer.Option("--tasks", min=1, help="Number of optimizees.")]
RecipeName = Annotated[str, typer.Argument(help="A recipe of data/recipes, or a path to one (.toml).")]
Storage = Annotated[str | None, typer.Option(help="Database URL of a search that several machines share.")]
Data = Annotated[Path, typer.Option(parser=user_path, help="Where pretrained/, results/ and cache/ are.")]
Settings = Annotated[list[str] | None, typer.Option("--set", "-p", help="A field, as name=value; may be repeated.")]


def _pairs(settings: list[str] | None) -> dict[str, str]:
    for setting in settings or []:
        if "=" not in setting:
            raise typer.BadParameter(f"{setting!r} is not of the form name=value.", param_hint="-p")
    return dict(setting.split("=", 1) for setting in settings or [])


def _problem(name: str, settings: list[str] | None) -> Problem:
    """A problem with fields as in Python: 3, 0.1, True, "20,20" or "20," for tuples; what is none of that is a word."""
    fields: dict[str, object] = {"name": name, **_pairs(settings)}
    if fields["name"] != name:
        raise ValueError(f"-p name={fields['name']}: choose the problem itself instead of changing the name of {name}.")
    for field, text in _pairs(settings).items():
        try:
            fields[field] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            continue
    return problems.make(fields)


def _print_table(rows: Sequence[Mapping[Any, str | Text]], title: str | None = None) -> None:
    """Rows that share their columns."""
    table = Table(*(rows[0] if rows else ()), title=title)
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


@app.command()
def train(
    recipe: RecipeName,
    jobs: Jobs = 1,
    storage: Storage = None,
    data: Data = HOME,
    device: Device = None,
    log_dir: Annotated[
        Path | None, typer.Option(parser=user_path, help="Log here what TensorBoard shows, by recipe.")
    ] = None,
) -> None:
    """Make pretrained optimizers: search the meta-learning rate, train, save. Goes on where it was interrupted."""
    if log_dir is not None:
        with needs("tensorboard"):  # before the search
            import tensorboard  # noqa: F401

    def say(path: Path) -> None:
        if rank_and_world_size()[0] == 0:
            it = zoo.card(path)["trained"]
            how = f"loss {it['validation_loss']:.4g} after {it['episodes']} episodes, {it['seconds']} s"
            console.print(f"{path}: validation {how}")

    with process_group(device) as mine:
        calls = [(member, data, str(mine), storage, log_dir) for member in read_recipes(recipe)]
        parallel_map(train_recipe, calls, jobs, say)


@app.command()
def search(
    recipe: RecipeName, jobs: Jobs = 1, storage: Storage = None, data: Data = HOME, device: Device = None
) -> None:
    """Draw meta-learning rates, and what else a recipe leaves open, at random. Goes on where it was interrupted."""
    from l2l_kit import plots, static

    for member in read_recipes(recipe):
        with console.status(f"{member.name}: random search"):
            trials = search_recipe(member, data, jobs, device, storage)
        _print_table(trials.map("{:.4g}".format).to_dict("records"), f"{member.name}, best first")
        console.print(f"recorded in {data / 'results' / 'search' / member.name}.csv", soft_wrap=True)
        for name in member.search.ranges if member.search else ():
            path = data / "cache" / "runs" / member.name / f"search-{name}.png"
            write_atomically(path, static.png(plots.search(trials, name, title=f"{member.name}: random search")))
            console.print(f"plotted in {path}", soft_wrap=True)


@app.command()
def tune(
    problem: Annotated[str, typer.Argument(help="The problem, such as quadratics, or path/to/file.py:name.")],
    settings: Settings = None,
    steps: Annotated[list[int], typer.Option(min=1, help="Updates per run; repeat it for several lengths.")] = [100],  # noqa: B006
    num_tasks: Tasks = 1000,
    rates: Annotated[int, typer.Option(min=1, help="Learning rates per decade that are tried.")] = 8,
    seed: Seed = 0,
    data: Data = HOME,
    device: Device = None,
) -> None:
    """Find the learning rate of every baseline that gives the best final loss, and record it in data/results."""
    chosen, arguments = _problem(problem, settings), {"num_tasks": num_tasks, "rates": rates, "seed": seed}
    with console.status("tuning"):
        tunings, path = record_tuning(chosen, data, steps=steps, device=device, **arguments)
    rows = []
    for tuning in tunings:
        for step in steps:
            rows.append({"baseline": BASELINES[tuning.name], "step": str(step)})
            for statistic in get_args(Statistic):
                rows[-1][f"lr, best {statistic}"] = f"{tuning.best(statistic, step).lr:.4g}"
                rows[-1][statistic] = f"{tuning.final(statistic, step).min():.4g}"
    _print_table(rows)
    console.print(f"recorded in {path}")


@app.command()
def compare(
    optimizers: Annotated[
        list[str], typer.Argument(help="Pretrained ones by name or path, baselines as adam (tuned) or adam=0.1.")
    ],
    problem: Annotated[str, typer.Option(help="The problem.")] = "quadratics",
    settings: Settings = None,
    steps: Annotated[int, typer.Option(min=1, help="Updates per run.")] = 100,
    num_tasks: Tasks = 1000,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Run optimizers on the same fresh optimizees and print their losses after the last step."""
    tasks = _problem(problem, settings)
    chosen: dict[str, Optimizer[Any]] = {}
    for text in optimizers:
        label, optimizer = _optimizer(text, problem, tasks, steps)
        if label in chosen:
            raise ValueError(f"two of these optimizers would be called {label!r}. Rename a file, or leave one out.")
        chosen[label] = optimizer
    curves = run_comparison(chosen, tasks, steps=steps, num_tasks=num_tasks, seed=seed, device=device)
    rows, last = [], replace(curves, losses={name: losses[:, -1:] for name, losses in curves.losses.items()})
    for name in last.losses:
        rows.append({"optimizer": name})
        for statistic in get_args(Statistic):
            value, low, high = (part.item() for part in last.interval(name, statistic))
            rows[-1][f"{statistic} (95% CI)"] = f"{value:.4g} ({low:.4g} to {high:.4g})"
    made_of = provenance(tasks.config())["data"]
    on = f"{tasks.name}{f' ({made_of})' if made_of else ''}"
    _print_table(rows, f"{on}: f after {steps} steps, {num_tasks} optimizees")


def _optimizer(text: str, problem: str, tasks: Problem, steps: int) -> tuple[str, Optimizer[Any]]:
    """An optimizer as the command line names it: "adam", "adam=0.1", a pretrained one or a path."""
    name, given, lr = text.partition("=")
    label = BASELINES.get(name.lower(), name)
    if name.lower() not in BASELINES:
        try:
            return Path(text).name.removesuffix(".safetensors"), zoo.load(text)
        except UnknownNameError:
            if not given and name.lower() in KINDS:
                raise ValueError(f"{text}: no rate is recorded for it. Give one, such as {name}=0.1.") from None
            if not given:
                raise UnknownNameError("optimizer", text, [*zoo.names(), *KINDS]) from None
    if given:
        try:
            return f"{label} {float(lr):g}", baseline(name, float(lr))
        except UnknownNameError:
            raise
        except ValueError as error:
            raise ValueError(f"{text}: needs a positive number, such as {name}=0.1.") from error
    try:
        recorded = read_result(f"{tasks.name}/tuning")
    except FileNotFoundError as error:
        give = f"Give one, such as {name}=0.1, or find it by `l2l tune {problem}`."
        raise ValueError(f"{text}: no rate is recorded for {tasks.name}. {give}") from error
    then, now = ({**config, "source": ""} for config in (recorded.attrs.get("problem", {}), in_json(tasks.config())))
    if other := [f"{field} {then[field]!r}" for field in then if then[field] != now.get(field)]:
        raise ValueError(f"{text}: its rate was tuned for {', '.join(other)}. Give a rate, such as {name}=0.1.")
    if steps in set(recorded["step"]):
        return label, tuned_baselines(tasks.name, step=steps)[label]
    return f"{label}, tuned for {max(recorded['step'])} steps", tuned_baselines(tasks.name)[label]


@app.command()
def sweep(
    name: Annotated[str, typer.Argument(help="A sweep of data/sweeps, or a path to one (.toml).")],
    only: Annotated[list[str] | None, typer.Option(help="Run only these optimizers, and record nothing yet.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Draw other optimizees, and record them beside the first.")
    ] = None,
    jobs: Jobs = 1,
    data: Data = HOME,
    device: Device = None,
) -> None:
    """Compare optimizers, baselines freshly tuned, over a grid of problems. Goes on where it was interrupted."""
    path = run_sweep(read_sweep(name), data, only=only, seed=seed, jobs=jobs, device=device)
    if path is not None:
        console.print(f"recorded in {path}")


@app.command()
def reproduce(
    profile: Annotated[
        Literal["quick", "full"], typer.Option(help="Use what is recorded, or make it first.")
    ] = "quick",
    lesson: Annotated[list[str] | None, typer.Option(help="Only these lessons, such as 01; may be repeated.")] = None,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(parser=user_path, help="Where executed notebooks and the report go.")] = Path(
        "build/report"
    ),
    jobs: Annotated[int | None, typer.Option(min=1, help="Lessons at once; as many as cores if not given.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Record the claims, to compare later runs with.")] = False,
    data: Data = HOME,
    device: Device = None,
) -> None:
    """Execute the lessons headless, and write a report of claims and figures. Goes on where it was interrupted."""
    given = _pairs(settings)
    for option in {"profile", "device"} & given.keys():
        raise ValueError(f"{option} is not a parameter of one lesson: give --{option} {given[option]}.")
    parameters = {"profile": str(profile), **({"device": device} if device else {}), **given}
    chosen, at_once, notebooks = find_lessons(lesson or ()), jobs or cores(), out / "notebooks"
    console.print(f"{len(chosen)} lessons, {min(at_once, len(chosen))} at a time, into {notebooks}")
    began, done_so_far = time.monotonic(), list[Lesson]()

    def say(lesson: Lesson) -> None:
        done_so_far.append(lesson)
        seconds, left = time.monotonic() - began, len(chosen) - len(done_so_far)
        _say(lesson, f"; about {seconds / len(done_so_far) * left / 60:.0f} min left" if left and seconds > 60 else "")

    with console.status("executing lessons"):
        lessons = execute_lessons(chosen, notebooks, parameters, jobs=at_once, on_lesson=say)
    page = write_report(lessons, parameters, out, data / "results")
    console.print(summary([claim for done in lessons for claim in done.claims]))
    console.print(f"report: {page.resolve()}", soft_wrap=True)
    if record:
        path = record_claims(lessons, data / "results", int(parameters.get("seed", 0)))
        console.print(f"recorded in {path}", soft_wrap=True)
    if any(done.error for done in lessons):
        raise typer.Exit(1)


def _say(lesson: Lesson, left: str) -> None:
    outcome = f"failed after {lesson.seconds:.0f} s" if lesson.error else f"done in {lesson.seconds:.0f} s"
    claims = f"; claims: {tally(lesson.claims)}" if lesson.claims else ""
    line = f"{lesson.name}: {outcome}{claims}{f': {lesson.error}' if lesson.error else ''}{left}"
    console.print(line, style="red" if lesson.error else None)


@app.command()
def site(
    folder: Annotated[Path, typer.Argument(parser=user_path, help="Where it goes.")] = Path("build/site"),
    lesson: Annotated[list[str] | None, typer.Option(help="Only these lessons, such as 02; may be repeated.")] = None,
    repository: Annotated[str, typer.Option(help="The kit's address, for links to Binder and Colab.")] = "",
    record: Annotated[bool, typer.Option("--record", help="Record anew what explorers show.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Explorers at once; as many as cores if not given.")] = None,
    data: Data = HOME,
) -> None:
    """Write a site of the committed lessons that needs no kernel, no network and no server."""
    with console.status("writing the site"):
        records, at_once = data / "site", jobs or cores()
        page = write_site(
            find_lessons(lesson or ()), folder, records, again=record, repository=repository, jobs=at_once
        )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    console.print(f"{page.resolve()}: {size / 1e6:.0f} MB", highlight=False, soft_wrap=True)


@app.command()
def fetch(
    name: Annotated[str | None, typer.Argument(help="What, such as mnist; everything if not given.")] = None,
) -> None:
    """Download data sets and VGG-16 into the cache, $L2L_DATA_DIR or data/cache, unless whole copies are there."""
    failed = 0
    for each in [name] if name else data_sets.DATA_SETS:
        (whole, remark), data_set = data_sets.status(each), data_sets.DATA_SETS[each]
        if not whole:
            console.print(f"{each}: {remark or 'not in the cache.'} Downloading from {data_set.url}", soft_wrap=True)
            try:
                data_sets.fetch(each)
            except DataError as error:  # the others may come from a place that can be reached
                complaints.print(Text("error:", "red"), str(error))
                failed += 1
                continue
        copy = f" ({remark})" if whole and remark else ""
        console.print(f"{each}: whole, in {data_set.path}{copy}", soft_wrap=True)
    if failed:
        raise typer.Exit(2)


@app.command("zoo")
def list_zoo() -> None:
    """List the pretrained optimizers by what they were trained on; load("mnist") or compare takes their names."""
    by_problem: dict[str, list[tuple[int, dict[str, str | Text]]]] = {}
    damaged: list[str] = []
    for name in zoo.names():
        try:
            about = {"problem": {}, "training": {}, "trained": {}} | zoo.card(name)  # it may be saved without a history
        except WeightsFileError as error:
            damaged.append(str(error))
            continue
        problem, training, trained, rule = (about[part] for part in ("problem", "training", "trained", "optimizer"))
        lstms, loss = rule.get("groups", {"": rule}).values(), trained.get("validation_loss")
        kind = problem.get("name", "unknown")
        labels = len(problem.get("labels", range(10))) if kind in ("mnist", "cifar") else 0
        failed = bool(labels) and loss is not None and loss > 0.9 * math.log(labels)
        first = name == kind.replace("_", "-")
        note = Text("failed: no better than guessing", "red") if failed else Text("")
        note = Text("recommended", "bold green") if first else note
        row: dict[str, str | Text] = {
            "name": name,
            "preprocessing": ", ".join(sorted({lstm["preprocessing"]["name"] for lstm in lstms})),
            **{field: str(training.get(field, "")) for field in ("unroll", "horizon")},
            "episodes": f"{kept_episodes(about)} of {trained['episodes']}" if trained else "",
            "validation loss": "" if loss is None else f"{loss:.4g}",
            "": note,
        }
        by_problem.setdefault(kind, []).append((0 if first else 1 + failed, row))
    for problem_name, rows in by_problem.items():
        _print_table([row for _, row in sorted(rows, key=lambda each: each[0])], f"trained on {problem_name}")
    if damaged:
        raise WeightsFileError(" ".join(damaged))
    if not by_problem:
        console.print(f"none in {PRETRAINED}", soft_wrap=True)
