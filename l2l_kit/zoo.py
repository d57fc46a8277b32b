"""Pretrained optimizers: weights as safetensors, and beside them a JSON card that says where they come from."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from l2l_kit import optimizers
from l2l_kit.errors import UnknownNameError, WeightsFileError
from l2l_kit.evaluation import machine, write_result
from l2l_kit.optimizers import LearnedRule
from l2l_kit.parallel import file_lock, parallel_map
from l2l_kit.paths import HOME, PRETRAINED, user_path
from l2l_kit.problems import with_current_names
from l2l_kit.storage import BoundedWeights, load_weights, read_tensors, write_atomically, write_tensors
from l2l_kit.tensors import pick_device
from l2l_kit.training import History, Imitation, Recipe, find_recipe, imitate, meta_train, random_search
from l2l_kit.training.processes import barrier, rank_and_world_size

if TYPE_CHECKING:
    import pandas as pd

FORMAT_VERSION = 1


def names() -> list[str]:
    """Names of the pretrained optimizers that come with the kit."""
    return sorted(path.stem for path in PRETRAINED.glob("*.safetensors"))


def load(name_or_path: str | Path, device: str | torch.device | None = None) -> LearnedRule:
    """A learned optimizer with its weights, in the precision in which they were saved.

    Args:
        name_or_path: a pretrained one by name (see `names`), or a path to a ``.safetensors`` file that `save` wrote.
            What is neither is looked for in the working directory, so that what was saved as "mine" loads as "mine".
        device: where to put it; None leaves it on the CPU.

    Raises:
        UnknownNameError: if there is no such pretrained optimizer; the message offers the nearest one.
        WeightsFileError: if the file is missing, truncated, damaged, not safetensors, of another shape or a newer
            version, or a weight is NaN or infinite.
        ValueError: if "cuda" is asked for and torch sees no GPU.
    """
    path = _path(name_or_path)
    weights, about = read_tensors(path, FORMAT_VERSION)
    try:
        with BoundedWeights():
            optimizer = optimizers.make(about["optimizer"])
    except Exception as error:  # a description can be wrong in any way
        raise WeightsFileError(f"{path}: its description of the optimizer cannot be used ({error}).") from error
    dtypes = {weight.dtype for weight in weights.values()}
    if len(dtypes) == 1 and all(dtype.is_floating_point for dtype in dtypes):
        optimizer.to(dtypes.pop())  # whatever torch's default type is now
    load_weights(optimizer, weights, str(path))
    return optimizer if device is None else optimizer.to(pick_device(device))


def card(name_or_path: str | Path) -> dict[str, Any]:
    """What is known of a saved optimizer: what it was trained on, how, for how long, and how well it did.

    Raises:
        UnknownNameError: as `load`.
        WeightsFileError: as `load`.
    """
    about = read_tensors(_path(name_or_path), FORMAT_VERSION)[1]
    if isinstance(about.get("problem"), dict):
        about["problem"] = with_current_names(about["problem"])
    return about


def save(
    optimizer: LearnedRule,
    path: str | Path,
    history: History | None = None,
    *,
    start: str | None = None,
    imitation: Mapping[str, Any] | None = None,
) -> Path:
    """Save a learned optimizer as ``path`` (``.safetensors``) and its card beside it (``.json``).

    The card stands in the header of the weights as well, so the one file is enough to load it.

    Args:
        optimizer: what to save.
        path: a file name; ``.safetensors`` is added if missing. A mere name goes to the working directory.
        history: of its meta-training; without it the card says nothing of that.
        start: name of the optimizer from whose weights the meta-training went on, if there was one.
        imitation: what it imitated before its meta-training, and how, if it did.

    Raises:
        WeightsFileError: if a weight is NaN or infinite.
        ValueError: if it is the name of a pretrained optimizer, which is what `load` would give.
    """
    if _is_name(Path(path)) and str(path) in names():
        raise ValueError(
            f"{str(path)!r} is the name of a pretrained optimizer, which is what load would give. Choose another name, "
            f'or "{path}.safetensors".'
        )
    path = _with_suffix(user_path(path))
    weights = optimizer.state_dict()
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise WeightsFileError(f"{path}: not saved, since the optimizer is broken: {name} is not finite.")
    from l2l_kit import __version__

    about: dict[str, Any] = {"optimizer": optimizer.config()}
    if history is not None:
        about |= history.about()
    if start is not None:
        about["start"] = start
    if imitation is not None:
        about["imitation"] = dict(imitation)
    about["versions"] = {"l2l_kit": __version__, "torch": torch.__version__, "python": platform.python_version()}
    write_tensors(path, weights, about, FORMAT_VERSION)
    write_atomically(path.with_suffix(".json"), (json.dumps(about, indent=2) + "\n").encode())
    return path


def _with_suffix(path: Path) -> Path:
    return path if path.suffix == ".safetensors" else path.with_name(f"{path.name}.safetensors")


def _path(name_or_path: str | Path) -> Path:
    path = user_path(name_or_path)
    if not _is_name(path):
        return _with_suffix(path)
    for folder in (PRETRAINED, Path()):
        if (file := folder / f"{name_or_path}.safetensors").is_file():
            return file
    raise UnknownNameError("pretrained optimizer", str(name_or_path), names())


def _is_name(path: Path) -> bool:
    return path.suffix != ".safetensors" and len(path.parts) == 1


def search_recipe(
    recipe: Recipe,
    data: Path = HOME,
    *,
    storage: str | None = None,
    device: str | torch.device | None = None,
    on_trial: Callable[[pd.DataFrame], None] | None = None,
) -> pd.DataFrame:
    """Search what a recipe leaves open, and record the trials; arguments as in `follow_recipe` and `random_search`."""
    kept = storage or _runs(recipe, data) / "search.db"
    trials = random_search(_begun(recipe, data, device, True), kept, device=device, on_trial=on_trial)
    about = {**_about(recipe, device), **asdict(recipe.search)} if recipe.search else {}
    write_result(f"search/{recipe.name}", trials, about, data / "results")
    return trials


def follow_recipe(
    recipe: Recipe,
    data: Path = HOME,
    *,
    storage: str | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Path:
    """Make a pretrained optimizer: search its meta-learning rate, train it, save it, and record how that went.

    Everything is kept under ``data/cache/runs`` on the way: a run that was interrupted goes on where it was, and one
    that is finished is not run again. Of several that follow the same recipe, one trains while the others wait for it.

    Args:
        recipe: what to make.
        data: where ``pretrained/``, ``results/`` and ``cache/`` are.
        storage: database of the search, if it is not the file beside the run.
        device: None for the best there is.
        progress: show a progress bar.

    Returns:
        Path of the saved optimizer.

    Raises:
        ValueError: on several processes, if the recipe has a search.
    """
    rank, processes = rank_and_world_size()
    if recipe.search is not None and processes > 1:
        raise ValueError(
            f"recipe {recipe.name!r} searches its meta-learning rate, which torchrun's processes cannot do together: "
            "leave out its [search], and give it a meta_lr and shards."
        )
    runs = _runs(recipe, data)
    runs.mkdir(parents=True, exist_ok=True)
    path = data / "pretrained" / f"{recipe.name}.safetensors"
    with file_lock(runs / "lock") if rank == 0 else nullcontext():
        begun = _begun(recipe, data, device, progress)
        if recipe.search is not None:
            trials = search_recipe(recipe, data, storage=storage, device=device)
            begun = begun.with_draw({name: float(trials[name].iloc[0]) for name in recipe.search.ranges})
        optimizer = begun.make_optimizer()
        checkpoint = runs / "checkpoint.safetensors"
        if begun.imitation is not None and not checkpoint.exists():  # a checkpoint holds what came of the imitation
            _imitate(begun, begun.imitation, optimizer, runs / "imitation.safetensors", progress)
        history = meta_train(
            optimizer,
            begun.make_problem(),
            checkpoint=checkpoint,
            device=device,
            progress=progress,
            **asdict(begun.training),
        )
        if history.stopped != "finished":
            raise KeyboardInterrupt(f"{recipe.name}: interrupted; the same command goes on from {runs}.")
        if rank == 0:
            table = history.to_frame().reset_index()
            write_result(f"training/{recipe.name}", table, _about(recipe, device), data / "results")
            taught = {"teacher": recipe.teacher, **asdict(recipe.imitation)} if recipe.imitation else None
            save(optimizer, path, history, start=recipe.start, imitation=taught)
        barrier()
    return path


def _imitate(recipe: Recipe, settings: Imitation, optimizer: LearnedRule, path: Path, progress: bool) -> None:
    """Let an optimizer imitate its recipe's teacher, or load what an earlier run of the recipe saved of that."""
    asked = {"optimizer": optimizer.config(), "imitation": asdict(settings), "teacher": dict(recipe.teacher)}
    asked = json.loads(json.dumps({**asked, "problem": recipe.make_problem().config()}))
    if path.exists():
        weights, about = read_tensors(path, FORMAT_VERSION)
        if {**about, "problem": with_current_names(about.get("problem", {}))} == asked:
            load_weights(optimizer, weights, str(path))
            return
    taught = imitate(optimizer, recipe.make_teacher(), recipe.make_problem(), settings)
    with tqdm(taught, total=settings.networks, unit="network", desc="imitation", disable=not progress) as bar:
        for one in bar:
            bar.set_postfix(error=f"{one.error:.3g}", loss=f"{one.losses[-20:].mean():.3g}")
    write_tensors(path, optimizer.state_dict(), asked, FORMAT_VERSION)


def follow_recipes(
    recipes: Sequence[Recipe],
    data: Path = HOME,
    *,
    jobs: int = 1,
    storage: str | None = None,
    device: str | torch.device | None = None,
) -> Iterator[Path]:
    """Make several pretrained optimizers, some at the same time; arguments as in `follow_recipe`."""
    progress = min(jobs, len(recipes)) == 1
    return parallel_map(_follow, [(recipe, data, storage, device, progress) for recipe in recipes], jobs)


def _follow(recipe: Recipe, data: Path, storage: str | None, device: str | torch.device | None, progress: bool) -> Path:
    return follow_recipe(recipe, data, storage=storage, device=device, progress=progress)


def _runs(recipe: Recipe, data: Path) -> Path:
    return data / "cache" / "runs" / recipe.name


def _about(recipe: Recipe, device: str | torch.device | None) -> dict[str, Any]:
    about = {"recipe": recipe.name, "problem": recipe.problem, **machine(pick_device(device))}
    return about if recipe.start is None else {**about, "start": recipe.start}


def _begun(recipe: Recipe, data: Path, device: str | torch.device | None, progress: bool) -> Recipe:
    """The recipe with the weights of the optimizer from which it goes on, which is made first if it is not there."""
    if recipe.start is None:
        return recipe
    start = data / "pretrained" / f"{recipe.start}.safetensors"
    if not start.is_file():
        follow_recipe(find_recipe(recipe.start), data, device=device, progress=progress)
    return replace(recipe, initial=load(start).state_dict())
