"""The command line: ``l2l train | search | tune | compare | sweep | reproduce | gallery | fetch | zoo``."""

from __future__ import annotations

import ast
import errno
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from l2l_kit import data as data_sets
from l2l_kit import problems, zoo
from l2l_kit.anew import run_sweep
from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import (
    Claim,
    machine,
    read_result,
    read_sweep,
    record_tuning,
    tuned_baselines,
    write_result,
)
from l2l_kit.evaluation import compare as run_comparison
from l2l_kit.evaluation.compare import Statistic
from l2l_kit.gallery import write_gallery
from l2l_kit.optimizers import BASELINES, Optimizer, baseline
from l2l_kit.parallel import cores, parallel_map
from l2l_kit.paths import DATA, HOME, user_path
from l2l_kit.problems import Problem
from l2l_kit.problems.features import SMALL
from l2l_kit.report import claims_table, environment, recorded_table, report
from l2l_kit.reproduce import Lesson, cells_done, find_lessons
from l2l_kit.reproduce import reproduce as run_lessons
from l2l_kit.storage import write_atomically, write_tensors
from l2l_kit.training import Recipe, read_recipes
from l2l_kit.training.features import train_features
from l2l_kit.training.processes import process_group, rank_and_world_size

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    help="Learning to learn by gradient descent by gradient descent.", no_args_is_help=True, add_completion=False
)
RECORD = "reproduce/claims"

# A pipe has no width: give it room, so that a name is never cut.
console = Console(width=None if sys.stdout.isatty() else 160)
complaints = Console(stderr=True, soft_wrap=True, highlight=False)

Device = Annotated[str | None, typer.Option(help='"cpu" or "cuda"; the best there is if not given.')]
Seed = Annotated[int, typer.Option(help="Seed of all draws.")]
RecipeName = Annotated[str, typer.Argument(help="A recipe of data/recipes, or a path to one (.toml).")]
Members = Annotated[list[str] | None, typer.Option("--only", help="Only these members of the recipe's grid.")]
Storage = Annotated[
    str | None,
    typer.Option(help="Database URL that keeps the search, for several machines; a file in cache/ if not given."),
]
Data = Annotated[Path, typer.Option(parser=user_path, help="Where pretrained/, results/ and cache/ are.")]
Settings = Annotated[list[str] | None, typer.Option("--set", "-p", help="A field, as name=value; may be repeated.")]


@contextmanager
def _clear_errors(after_a_stop: str = "") -> Iterator[None]:
    """Show what the user can mend as one line, without a traceback."""
    try:
        yield
    except (ValueError, ArithmeticError, OSError) as error:
        text = _explained(error) if isinstance(error, OSError) and error.errno else str(error)
        complaints.print(f"[red]error:[/red] {escape(text)}")
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        complaints.print(f"stopped. {escape(str(error) or after_a_stop)}")
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


def _pairs(settings: list[str] | None) -> dict[str, str]:
    pairs = {}
    for setting in settings or []:
        name, separator, value = setting.partition("=")
        if not separator:
            raise ValueError(f"{setting!r} is not of the form name=value.")
        pairs[name] = value
    return pairs


def _problem(name: str, settings: list[str] | None) -> Problem:
    def value(text: str) -> object:
        """As in Python: 3, 0.1, True, "20,20" or "20," for tuples; what is none of that is a word."""
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text

    return problems.make({"name": name, **{key: value(text) for key, text in _pairs(settings).items()}})


@app.command()
def train(
    recipe: RecipeName,
    only: Members = None,
    jobs: Annotated[int, typer.Option(min=1, help="Members to train at once, the cores shared among them.")] = 1,
    storage: Storage = None,
    data: Data = HOME,
    device: Device = None,
) -> None:
    """Make pretrained optimizers: search the meta-learning rate, train, save. Goes on where it was interrupted."""
    with _clear_errors():
        chosen = _members(recipe, only)
        with process_group(device) as mine:
            made = zoo.follow_recipes(chosen, data, jobs=jobs, storage=storage, device=str(mine))
            for number, path in enumerate(made, start=1):
                if rank_and_world_size()[0] == 0:
                    console.print(f"({number}/{len(chosen)}) {_trained(path)}")


@app.command("train-features")
def train_small_network(
    epochs: Annotated[int, typer.Option(min=1, help="Passes over CIFAR-10.")] = 3,
    seed: Seed = 0,
    data: Annotated[Path, typer.Option(parser=user_path, help="Where networks/ and results/ are.")] = DATA,
) -> None:
    """Make the small network whose features stand in for VGG-16's, and record how well it tells pictures apart."""
    import pandas as pd

    with _clear_errors():
        trained = train_features(SMALL, epochs, seed=seed)
        columns = {"epoch": range(1, epochs + 1), "training_loss": trained.losses, "test_accuracy": trained.accuracy}
        about = {
            "command": f"l2l train-features --epochs {epochs} --seed {seed}",
            "blocks": SMALL,
            "trained_on": trained.trained_on,
            **machine(torch.device("cpu")),
        }
        recorded = write_result("training/small-network", pd.DataFrame(columns), about, data / "results")
        path = data / "networks" / "small.safetensors"
        write_tensors(path, trained.weights, about, 1)
        console.print(f"{path}: {trained.accuracy[-1]:.1%} of CIFAR-10's test images right; recorded in {recorded}")


def _members(recipe: str, only: list[str] | None) -> list[Recipe]:
    """The recipes of a file, or those of its grid that were asked for."""
    members = {member.name: member for member in read_recipes(recipe)}
    for name in only or []:
        if name not in members:
            raise UnknownNameError(f"member of recipe {recipe!r}", name, members)
    return [member for name, member in members.items() if not only or name in only]


def _trained(path: Path) -> str:
    trained = zoo.card(path)["trained"]
    loss, episodes, seconds = trained["validation_loss"], trained["episodes"], trained["seconds"]
    return f"{path}: validation loss {loss:.4g} after {episodes} episodes, {seconds} s"


@app.command()
def search(
    recipe: RecipeName,
    only: Members = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trials to run at once, the cores shared among them.")] = 1,
    storage: Storage = None,
    data: Data = HOME,
    device: Device = None,
) -> None:
    """Draw meta-learning rates, and what else a recipe leaves open, at random. Goes on where it was interrupted."""
    with _clear_errors():
        for member in _members(recipe, only):
            if member.search is None:
                raise ValueError(f"recipe {member.name!r} has no [search] section.")
            work = [(member, data, storage, device)] * min(jobs, member.search.trials)
            from l2l_kit import plots, static

            with console.status(f"{member.name}: {member.search.trials} trials"):
                *_, trials = parallel_map(_search, work, jobs)
            table = Table(*trials.columns, title=f"{member.name}, best first")
            for row in trials.itertuples(index=False):
                table.add_row(*(f"{value:.4g}" for value in row))
            console.print(table)
            console.print(f"recorded in {data / 'results' / 'search' / member.name}.csv", soft_wrap=True)
            for name in member.search.ranges:
                path = data / "cache" / "runs" / member.name / f"search-{name}.png"
                write_atomically(path, static.png(plots.search(trials, name, title=f"{member.name}: random search")))
                console.print(f"plotted in {path}", soft_wrap=True)


def _search(recipe: Recipe, data: Path, storage: str | None, device: str | None) -> pd.DataFrame:
    return zoo.search_recipe(recipe, data, storage=storage, device=device)


@app.command()
def tune(
    problem: Annotated[str, typer.Argument(help="The problem, such as quadratics, or path/to/file.py:name.")],
    settings: Settings = None,
    steps: Annotated[list[int], typer.Option(help="Updates per run; repeat it to tune for several lengths.")] = [100],  # noqa: B006
    num_tasks: Annotated[int, typer.Option("--tasks", help="Number of optimizees.")] = 1000,
    rates: Annotated[int, typer.Option(min=1, help="Learning rates per decade that are tried.")] = 8,
    seed: Seed = 0,
    data: Data = HOME,
    device: Device = None,
) -> None:
    """Find the learning rate of every baseline that gives the best final loss, and record it in data/results."""
    with _clear_errors():
        chosen = _problem(problem, settings)
        with console.status("tuning"):
            tunings, path = record_tuning(
                chosen,
                steps=steps,
                num_tasks=num_tasks,
                rates=rates,
                seed=seed,
                directory=data / "results",
                device=device,
            )
        table = Table("baseline", "step", "lr, best mean", "mean", "lr, best median", "median")
        for tuning in tunings:
            for step in steps:
                cells = []
                for statistic in get_args(Statistic):
                    best = tuning.best(statistic, step).lr, tuning.final(statistic, step).min()
                    cells += [f"{value:.4g}" for value in best]
                table.add_row(BASELINES[tuning.name], str(step), *cells)
        console.print(table)
        console.print(f"recorded in {path}")


def _optimizer(text: str, tuned_on: str) -> tuple[str, Optimizer[Any]]:
    """An optimizer as the command line names it: "adam", "adam=0.1", a pretrained one or a path."""
    name, _, lr = text.partition("=")
    if name.lower() not in BASELINES:
        return Path(text).stem, zoo.load(text)
    label = BASELINES[name.lower()]
    return (f"{label} {lr}", baseline(name, float(lr))) if lr else (label, tuned_baselines(tuned_on)[label])


@app.command()
def compare(
    optimizers: Annotated[
        list[str], typer.Argument(help="Pretrained ones by name or path, baselines as adam (tuned) or adam=0.1.")
    ],
    problem: Annotated[str, typer.Option(help="The problem, or path/to/file.py:name.")] = "quadratics",
    settings: Settings = None,
    steps: Annotated[int, typer.Option(help="Updates per run.")] = 100,
    num_tasks: Annotated[int, typer.Option("--tasks", help="Number of optimizees.")] = 1000,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(parser=user_path, help="Write the whole curves to this CSV file.")] = None,
    device: Device = None,
) -> None:
    """Run optimizers on the same fresh optimizees and print their losses after the last step."""
    with _clear_errors():
        tasks = _problem(problem, settings)
        chosen = dict(_optimizer(text, tasks.name) for text in optimizers)
        curves = run_comparison(chosen, tasks, steps=steps, num_tasks=num_tasks, seed=seed, device=device)
        table = Table(
            "optimizer", "mean", "95% CI", "median", "95% CI", title=f"f after {steps} steps, {num_tasks} optimizees"
        )
        for name in curves.losses:
            cells = []
            for statistic in ("mean", "median"):
                value, low, high = (part[-1].item() for part in curves.interval(name, statistic))
                cells += [f"{value:.4g}", f"{low:.4g} to {high:.4g}"]
            table.add_row(name, *cells)
        console.print(table)
        if out is not None:
            write_atomically(out, curves.to_frame().to_csv(index=False).encode())
            console.print(f"curves written to {out}")


@app.command()
def sweep(
    name: Annotated[str, typer.Argument(help="A sweep of data/sweeps, or a path to one (.toml).")],
    only: Annotated[
        list[str] | None, typer.Option(help="Run only these optimizers, such as Adam, and record nothing yet.")
    ] = None,
    pieces: Annotated[
        Path | None,
        typer.Option(parser=user_path, help="Folder of the runs that are finished, instead of the one in the cache."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once, the cores shared among them.")] = 1,
    data: Data = HOME,
    device: Device = None,
) -> None:
    """Compare optimizers, baselines freshly tuned, over a grid of problems. Goes on where it was interrupted."""
    with _clear_errors():
        plan = read_sweep(name)
        for label in only or []:
            if label not in plan.labels:
                raise UnknownNameError(f"optimizer of sweep {plan.name!r}", label, plan.labels)
        path = run_sweep(
            plan,
            data,
            only=only,
            pieces=pieces,
            jobs=jobs,
            device=device,
            on_piece=lambda piece: console.print(piece.words),
        )
        if path is None:
            return
        console.print(f"recorded in {path}")


@app.command()
def reproduce(
    profile: Annotated[str, typer.Option(help="quick or full.")] = "quick",
    lesson: Annotated[list[str] | None, typer.Option(help="Only these lessons, such as 01; may be repeated.")] = None,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(parser=user_path, help="Where executed notebooks and the report go.")] = Path(
        "build/report"
    ),
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Lessons to execute at once, the cores shared among them; as many as cores if not given."
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Execute lessons again that are finished.")] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Record the claims in results/reproduce, to compare later runs with.")
    ] = False,
    data: Data = HOME,
    device: Device = None,
) -> None:
    """Execute the lessons headless, and write a report of claims and figures. Goes on where it was interrupted."""
    with _clear_errors("The same command goes on where it was."):
        if profile not in ("quick", "full"):
            raise UnknownNameError("profile", profile, ("quick", "full"))
        parameters = {"profile": profile, **({"device": device} if device else {}), **_pairs(settings)}
        chosen, at_once = find_lessons(lesson or ()), jobs or cores()
        console.print(f"{len(chosen)} lessons, {min(at_once, len(chosen))} at a time, into {out / 'notebooks'}")
        with _LessonProgress(chosen) as progress:
            lessons = run_lessons(
                chosen,
                out / "notebooks",
                parameters,
                jobs=at_once,
                again=again,
                on_lesson=progress.end,
                on_progress=progress.move,
            )
        before = read_result(RECORD, data / "results") if (data / "results" / f"{RECORD}.csv").exists() else None
        about = environment({each: _in_use(data_sets.status(each)) for each in data_sets.names()})
        write_atomically(out / "claims.md", claims_table(lessons).encode())
        write_atomically(out / "report.html", report(lessons, parameters, about, before).encode())
        console.print(f"{_verdict([claim for done in lessons for claim in done.claims])}")
        console.print(f"report: {(out / 'report.html').resolve()}", soft_wrap=True)
        if record:
            console.print(f"recorded in {_record(lessons, before, about, data / 'results')}", soft_wrap=True)
        if any(done.error for done in lessons):
            raise typer.Exit(1)


def _in_use(found: data_sets.Status) -> str:
    if found.state == "verified":
        return f"whole, in the cache{f' ({found.packing})' if found.packing else ''}"
    return f"stand-in: {found.stand_in}"


def _record(lessons: Sequence[Lesson], before: pd.DataFrame | None, about: Mapping[str, str], results: Path) -> Path:
    """Record the claims of these lessons, and leave those of others as they are recorded."""
    import pandas as pd

    if failed := [lesson.name for lesson in lessons if lesson.error]:
        raise ValueError(f"{', '.join(failed)} failed; only lessons that ran to their end can be recorded.")
    table = recorded_table(lessons)
    if before is not None:
        others = before[~before["lesson"].isin([lesson.name for lesson in lessons])]
        table = pd.concat([others, table]).sort_values("lesson", kind="stable") if len(others) else table
    return write_result(RECORD, table, {"command": "l2l reproduce --record", **about}, results)


def _verdict(claims: Sequence[Claim]) -> str:
    return f"{sum(claim.holds for claim in claims)} of {len(claims)} claims hold"


class _LessonProgress(Progress):
    """A bar over the cells of all lessons with the time left, and a line for each lesson that is done."""

    def __init__(self, lessons: Sequence[Path]) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("cells, left:"))
        # Cells take from no time to minutes: what is left is judged by all that was done.
        super().__init__(
            *(*columns, TimeRemainingColumn()),
            console=console,
            transient=True,
            speed_estimate_period=1e6,
            disable=not console.is_terminal,
        )
        self._cells = {path.stem: cells_done(path)[1] for path in lessons}
        self._done = dict.fromkeys(self._cells, 0)
        self._bar = self.add_task("", total=sum(self._cells.values()))

    def move(self, lesson: str, done: int, cells: int) -> None:
        """So many of a lesson's cells are done."""
        self._done[lesson] = min(done, self._cells[lesson])  # papermill adds a cell
        under_way = ", ".join(name for name, done in self._done.items() if 0 < done < self._cells[name])
        self.update(self._bar, completed=sum(self._done.values()), description=under_way)

    def end(self, lesson: Lesson) -> None:
        """A lesson has ended."""
        self.move(lesson.name, self._cells[lesson.name], self._cells[lesson.name])
        verdict = f"[red]failed: {escape(lesson.error)}[/red]" if lesson.error else "done"
        claims = f", {_verdict(lesson.claims)}" if lesson.claims else ""
        self.console.print(f"{lesson.name}: {verdict} in {lesson.seconds:.0f} s{claims}")


@app.command()
def gallery(
    folder: Annotated[Path, typer.Argument(parser=user_path, help="Where the pictures go.")] = Path("docs/figures"),
) -> None:
    """Write the figures of the paper, as the committed lessons show them, as PNG files and a page."""
    with _clear_errors():
        for path in write_gallery(find_lessons(), folder):
            console.print(f"{path}: {path.stat().st_size / 1000:.0f} kB", highlight=False, soft_wrap=True)


@app.command()
def fetch(
    name: Annotated[str | None, typer.Argument(help="What, such as mnist; everything if not given.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Only show what is there and whether it is whole.")] = False,
) -> None:
    """Download data sets and VGG-16 into the cache, $L2L_DATA_DIR or data/cache."""
    with _clear_errors():
        found = [data_sets.status(each) for each in ([name] if name else data_sets.names())]
        if show:
            console.print(_data_table(found))
            return
        for before in found:
            if before.state == "verified":
                packing = f" ({before.packing})" if before.packing else ""
                console.print(f"{before.name}: already in {before.path}{packing}", soft_wrap=True)
                continue
            if before.damage:
                console.print(before.damage, soft_wrap=True)
            console.print(f"{before.name}: downloading from {before.official}", soft_wrap=True)
            path, after = data_sets.fetch(before.name), data_sets.status(before.name)
            packing = f" ({after.packing})" if after.packing else ""
            console.print(f"{before.name}: verified and written to {path}{packing}", soft_wrap=True)


def _data_table(found: list[data_sets.Status]) -> Table:
    table = Table("name", "in the cache", "checksum", "from", "without it")
    verdicts = {"verified": "[green]holds[/green]", "damaged": "[red]does not hold[/red]", "missing": ""}
    for one in found:
        file = "nothing" if one.state == "missing" else str(one.path)
        verdict = verdicts[one.state] + (f" ({one.packing})" if one.packing else "")
        table.add_row(one.name, file, verdict, one.official, one.stand_in)
    return table


@app.command("zoo")
def list_zoo() -> None:
    """List the pretrained optimizers."""
    table = Table("name", "trained on", "preprocessing", "unroll", "horizon", "episodes", "validation loss")
    with _clear_errors():
        for name in zoo.names():
            about = {"problem": {}, "training": {}, "trained": {}} | zoo.card(name)  # it may be saved without a history
            problem, training, trained, rule = (about[part] for part in ("problem", "training", "trained", "optimizer"))
            lstms = rule.get("groups", {"": rule}).values()
            table.add_row(
                name,
                problem.get("name", ""),
                ", ".join(sorted({lstm["preprocessing"]["name"] for lstm in lstms})),
                *(str(training.get(field, "")) for field in ("unroll", "horizon")),
                str(trained.get("episodes", "")),
                f"{trained['validation_loss']:.4g}" if trained else "",
            )
        console.print(table)
