"""Making pretrained optimizers by their recipes: search, imitation, meta-training, saving."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from l2l_kit import zoo
from l2l_kit.errors import UnknownNameError, WeightsFileError
from l2l_kit.evaluation import machine, read_result, write_result
from l2l_kit.extras import pd
from l2l_kit.making.imitation import Imitation, imitate
from l2l_kit.making.recipes import Recipe, find_recipe
from l2l_kit.making.work import check_same, digest, file_lock, kept, parallel_map, to_begin_again
from l2l_kit.optimizers import UpdateRule
from l2l_kit.paths import HOME
from l2l_kit.processes import barrier, rank_and_world_size
from l2l_kit.storage import load_weights
from l2l_kit.tensors import Device, Tensors, pick_device
from l2l_kit.training import MetaTraining, meta_train


def search_recipe(
    recipe: Recipe, data: Path = HOME, jobs: int = 1, device: Device = None, storage: str | None = None
) -> pd.DataFrame:
    """Search what a recipe leaves open, `jobs` trials at once, and record them; the rest as in `train_recipe`."""
    if recipe.search is None:
        raise ValueError(f"recipe {recipe.name!r} has no [search] section.")
    _check_place(recipe, data)
    from l2l_kit.making.search import random_search  # with optuna, which training alone does without

    begun, jobs = _with_start(recipe, data, device), min(jobs, recipe.search.trials)
    shared = (begun, recipe.search, storage or _runs(recipe, data) / "search.db", device)
    trials = parallel_map(random_search, [shared] * jobs, jobs)[0]
    about = {**_about(recipe, device), **{name: value for name, value in vars(recipe.search).items() if value}}
    write_result(f"search/{recipe.name}", trials, about, data / "results")
    return trials


def train_recipe(
    recipe: Recipe, data: Path = HOME, device: Device = None, storage: str | None = None, log_dir: Path | None = None
) -> Path:
    """Make a pretrained optimizer: search its meta-learning rate, train it, save it, and record how that went.

    Everything is kept under ``data/cache/runs`` on the way: a run that was interrupted goes on where it was, and one
    that is finished is not run again. Of several that follow the same recipe, one trains while the others wait for it.

    Args:
        recipe: what to make.
        data: where ``pretrained/``, ``results/`` and ``cache/`` are.
        device: None for the best there is.
        storage: database of the search, if it is not the file beside the run.
        log_dir: folder in which the recipe's own has what TensorBoard shows, see `MetaTrainer`.

    Returns:
        Path of the saved optimizer.

    Raises:
        ValueError: if another recipe made what is there by its name; for a storage without a search; or, on several
            processes, for a search.
    """
    if storage is not None and recipe.search is None:
        raise ValueError(f"recipe {recipe.name!r} has no [search] section, which --storage is for. Leave it out.")
    _check_place(recipe, data)
    rank, processes = rank_and_world_size()
    if recipe.search is not None and processes > 1:
        raise ValueError(
            f"recipe {recipe.name!r} searches its meta-learning rate, which torchrun's processes cannot do together: "
            "leave out its [search], and give it a meta_lr and shards."
        )
    runs = _runs(recipe, data)
    path = _made(recipe.name, data)
    with file_lock(runs / "lock") if rank == 0 else nullcontext():
        begun = _with_start(recipe, data, device)
        if recipe.search is not None:
            best = search_recipe(recipe, data, device=device, storage=storage).iloc[0]
            begun = begun.with_draw({name: float(best[name]) for name in recipe.search.ranges})
        optimizer, problem = begun.make_optimizer(), begun.make_problem()
        origin = {name: at for name, at in _origin(recipe).items() if at is not None}
        # A run that begins otherwise is another one.
        mark = f"-{digest(origin, (begun.initial or {}).values())}" if origin else ""
        checkpoint = runs / f"checkpoint{mark}.safetensors"
        if begun.imitation is not None and not checkpoint.exists():  # a checkpoint holds what came of the imitation
            _imitate(begun, begun.imitation, optimizer, runs, device)
        with to_begin_again():
            history = meta_train(
                optimizer,
                problem,
                begun.training,
                checkpoint=checkpoint,
                log_dir=log_dir and log_dir / recipe.name,
                device=device,
                progress=_alone(),
            )
        if history.stopped != "finished":
            raise KeyboardInterrupt(
                f"{recipe.name}: interrupted. Give the same command again to continue: {runs} has what is done."
            )
        if rank == 0:
            table = history.to_frame().reset_index()
            write_result(f"training/{recipe.name}", table, _about(recipe, device), data / "results")
            zoo.save(optimizer, path, history, origin)
        barrier()
    return path


def _imitate(recipe: Recipe, settings: Imitation, optimizer: UpdateRule, runs: Path, device: Device) -> None:
    """Let an optimizer imitate its recipe's teacher, or load what came of that earlier."""
    problem = recipe.make_problem()
    about = {"problem": problem.config(), "optimizer": optimizer.config(), "teacher": dict(recipe.teacher)}
    about |= {"imitation": asdict(settings)}

    def run() -> Tensors:
        taught = imitate(optimizer, recipe.make_teacher(), problem, settings, device=device)
        with tqdm(taught, total=settings.networks, unit="network", desc="imitation", disable=not _alone()) as bar:
            for one in bar:
                bar.set_postfix(error=f"{one.error:.3g}", loss=f"{one.losses[-20:].mean():.3g}")
        return optimizer.state_dict()

    initial = (recipe.initial or {}).values()
    weights, _ = kept(runs, about, run, weights=initial, prefix="imitation-", device=device)
    load_weights(optimizer, weights, f"imitation of {recipe.name}")


def _alone() -> bool:
    """Whether progress may be shown: several workers would write over each other."""
    return parent_process() is None


def _runs(recipe: Recipe, data: Path) -> Path:
    return data / "cache" / "runs" / recipe.name


def _made(name: str, data: Path) -> Path:
    return data / "pretrained" / f"{name}.safetensors"


def _origin(recipe: Recipe) -> dict[str, Any]:
    """From where meta-training begins, as the card says it; None for from where it does not."""
    taught = {"teacher": recipe.teacher, **asdict(recipe.imitation)} if recipe.imitation else None
    return {"start": recipe.start, "imitation": taught}


def _check_place(recipe: Recipe, data: Path) -> None:
    """Refuse to replace what another recipe of the same name made; what is damaged is made again."""
    asked = {"problem": recipe.make_problem().config(), "optimizer": recipe.make_optimizer().config()}
    asked |= {"training": asdict(recipe.training), **_origin(recipe)}
    path, searched = _made(recipe.name, data), data / "results" / "search" / f"{recipe.name}.csv"
    remedy = "Give the recipe another name, or choose another folder with --data."
    with suppress(WeightsFileError):  # there is none, or a damaged one
        card = {**zoo.card(path), "optimizer": zoo.load(path).config()}
        card["training"] = {**asdict(MetaTraining()), **card.get("training", {})}  # those of older versions are shorter
        made: dict[str, Any] = {part: card.get(part) for part in asked}
        for name in recipe.search.ranges if recipe.search else ():
            for table in (made["optimizer"], made["training"], asked["optimizer"], asked["training"]):
                table[name] = None
        check_same(path, made, asked, remedy)
    if recipe.search and searched.is_file():
        recorded: dict[Any, Any] = read_result(f"search/{recipe.name}", data / "results").attrs
        settings = {**asdict(recipe.search), "trials": None}
        check_same(searched, {"optimizer": {}, "prune": False, **recorded, "trials": None}, settings, remedy)


def _about(recipe: Recipe, device: Device) -> dict[str, Any]:
    about = {"recipe": recipe.name, "problem": recipe.problem, **machine(pick_device(device))}
    return about if recipe.start is None else {**about, "start": recipe.start}


def _with_start(recipe: Recipe, data: Path, device: Device) -> Recipe:
    """The recipe with the weights of the optimizer from which it goes on, which is made first if it is not there."""
    if recipe.start is None:
        return recipe
    start = _made(recipe.start, data)
    if not start.is_file():
        try:
            first = find_recipe(recipe.start)
        except UnknownNameError as error:
            wanted = f"recipe {recipe.name!r} starts from {start}, which no recipe of the kit makes"
            raise ValueError(f"{wanted}. Make it first, with the same --data.") from error
        train_recipe(first, data, device)
    return replace(recipe, initial=zoo.load(start).state_dict())
