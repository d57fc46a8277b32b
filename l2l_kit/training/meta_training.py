"""The meta-training loop: how a learned optimizer is learned (section 3 of the paper)."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from l2l_kit.errors import MetaTrainingDivergedError, UnknownNameError, WeightsFileError
from l2l_kit.optimizers import LearnedRule
from l2l_kit.paths import user_path
from l2l_kit.problems import Problem, TaskBatch, with_current_names
from l2l_kit.problems.base import check_problem, draw
from l2l_kit.randomness import generator
from l2l_kit.storage import check_finite, load_weights, read_tensors, write_tensors
from l2l_kit.tensors import pick_device
from l2l_kit.training.processes import all_reduce_mean, broadcast_from_first, rank_and_world_size
from l2l_kit.training.rollout import rollout
from l2l_kit.training.unroll import AutogradUnroller, ExactUnroller, ReplayUnroller, Unroller

if TYPE_CHECKING:
    import pandas as pd

CHECKPOINT_VERSION = 1
Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True, kw_only=True)
class MetaTraining:
    """The settings of a meta-training run. Together with problem, optimizer and machine they determine every bit of it.

    Args:
        horizon: steps that the optimizees are run for, T in equation 3.
        unroll: steps that are backpropagated through at once; each window ends in one meta-update. Where the horizon
            is not a multiple of it, the last window is shorter.
        epochs: how often the optimizer is validated; the best one by final validation loss is kept.
        episodes_per_epoch: batches of optimizees between two validations.
        batch_size: optimizees per batch; the meta-gradient is their mean.
        meta_lr: learning rate of Adam, the meta-optimizer.
        schedule: "constant", or "cosine": annealed from `meta_lr` to a hundredth of it over the run.
        clip_norm: the meta-gradient's norm is clipped to this, so that the steep first window of an episode does not
            drown the later ones; None for no clipping.
        validation_tasks: optimizees to validate on: the same ones after each epoch, never trained on.
        second_derivatives: keep the gradients along the dashed edges of figure 2.
        sample: coordinates of each parameter tensor from which the meta-gradient is estimated, where it has more (see
            `ReplayUnroller`); None for all.
        shards: parts of equal size into which a batch is cut, each drawn on its own. Several processes share them, and
            what comes out does not depend on how many processes there are, but for rounding. None for a batch that is
            drawn as a whole.
        seed: of all draws.

    Raises:
        ValueError: where a setting makes no sense, such as an unroll that is longer than the horizon.
    """

    horizon: int = 100
    unroll: int = 20
    epochs: int = 50
    episodes_per_epoch: int = 20
    batch_size: int = 128
    meta_lr: float = 0.003
    schedule: Schedule = "cosine"
    clip_norm: float | None = 1.0
    validation_tasks: int = 256
    second_derivatives: bool = False
    sample: int | None = None
    shards: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("horizon", "unroll", "epochs", "episodes_per_epoch", "batch_size", "validation_tasks"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"meta-training: {name} must be a whole number of at least 1, got {value!r}.")
        for name in ("sample", "shards"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"meta-training: {name} must be a whole number of at least 1, or None, got {value!r}.")
        if self.sample is not None and self.second_derivatives:
            raise ValueError("meta-training: with second_derivatives all coordinates are needed; leave sample None.")
        if self.shards is not None and self.batch_size % self.shards:
            raise ValueError(
                f"meta-training: batch_size {self.batch_size} cannot be cut into {self.shards} shards of equal size."
            )
        if self.unroll > self.horizon:
            raise ValueError(
                f"meta-training: unroll {self.unroll} is longer than the horizon {self.horizon}; "
                f"choose an unroll of at most {self.horizon}."
            )
        for name in ("meta_lr", "clip_norm"):
            value = getattr(self, name)
            if value is None and name == "clip_norm":
                continue
            if value is None or not (math.isfinite(value) and value > 0):
                raise ValueError(f"meta-training: {name} must be a positive number, got {value!r}.")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f'meta-training: schedule must be "constant" or "cosine", got {self.schedule!r}.')

    @property
    def episodes(self) -> int:
        """Batches of optimizees in the whole run."""
        return self.epochs * self.episodes_per_epoch

    @property
    def windows(self) -> list[int]:
        """Lengths of the windows into which the horizon is cut."""
        whole, rest = divmod(self.horizon, self.unroll)
        return [self.unroll] * whole + [rest] * (rest > 0)

    def meta_lr_at(self, episode: int) -> float:
        """The meta-learning rate in an episode, counted from 0."""
        if self.schedule == "constant":
            return self.meta_lr
        return self.meta_lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * episode / self.episodes)))


@dataclass(frozen=True)
class EpochRecord:
    """One line of a `History`. Epoch 0 is the optimizer before any training.

    Attributes:
        epoch: number of the epoch.
        training_loss: f(θ(t)), averaged over steps, optimizees and episodes; NaN in epoch 0.
        validation_loss: f(θ(horizon)), averaged over the validation optimizees.
        seconds: meta-training time up to here.
    """

    epoch: int
    training_loss: float
    validation_loss: float
    seconds: float


@dataclass
class History:
    """What happened in a meta-training run.

    Attributes:
        problem: configuration of the problem.
        settings: of the run.
        device: what it ran on.
        records: one per epoch.
        stopped: how it ended.
    """

    problem: dict[str, Any]
    settings: MetaTraining
    device: str
    records: list[EpochRecord]
    stopped: Literal["ready", "running", "finished", "cancelled", "diverged"] = "ready"

    @property
    def best(self) -> EpochRecord:
        """The record of the epoch whose optimizer was kept."""
        return min(self.records, key=lambda record: _nan_last(record.validation_loss))

    def about(self) -> dict[str, Any]:
        """The run in a few words, for the card of the optimizer that came out of it."""
        settings = self.settings
        about: dict[str, Any] = {"problem": self.problem, "training": asdict(settings)}
        if self.records:  # it may have been cancelled before the first validation
            last = self.records[-1]
            about["trained"] = {
                "episodes": last.epoch * settings.episodes_per_epoch,
                "meta_updates": last.epoch * settings.episodes_per_epoch * len(settings.windows),
                "seconds": round(last.seconds),
                "device": self.device,
                "best_epoch": self.best.epoch,
                "validation_loss": self.best.validation_loss,
                "stopped": self.stopped,
            }
        return about

    def to_frame(self) -> pd.DataFrame:
        """The records as a table, a row per epoch."""
        import pandas as pd

        return pd.DataFrame([asdict(record) for record in self.records]).set_index("epoch")


@dataclass(frozen=True)
class Progress:
    """Where a run stands; one comes after each episode and one after each validation.

    Attributes:
        epoch: the epoch under way, from 0.
        epochs: how many there will be.
        episode: episodes done.
        episodes: how many there will be.
        training_loss: mean f(θ(t)) over the steps and optimizees of the last episode; NaN before the first.
        validation_losses: after an epoch, f(θ(0)) … f(θ(horizon)) of the validation optimizees, shape
            ``(validation_tasks, horizon + 1)``; None between epochs.
        best_validation_loss: final validation loss of the best optimizer so far.
        seconds: meta-training time so far.
    """

    epoch: int
    epochs: int
    episode: int
    episodes: int
    training_loss: float
    validation_losses: Tensor | None
    best_validation_loss: float
    seconds: float


def validation_batch(problem: Problem, settings: MetaTraining, device: torch.device | None = None) -> TaskBatch:
    """The optimizees on which a run with these settings validates after each epoch."""
    return draw(problem.validation_problem(), settings.validation_tasks, generator(settings.seed, "validation"), device)


class MetaTrainer:
    """Meta-trains an optimizer as a generator of `Progress`, for live plots, cancelling and headless runs alike.

    Iterate over `run`; to cancel, stop iterating and close the generator. However it ends, the optimizer then holds the
    weights with the best validation loss, and `history` tells the rest.

    Where torchrun started several processes (see `processes.together`), each runs its share of the shards, all of them
    take the same meta-updates, and the first one validates and saves.

    Args:
        optimizer: is trained in place.
        problem: where the optimizees come from.
        settings: how.
        checkpoint: file in which the run is saved after each epoch. If it exists the run continues from it, with the
            same bits as if it had never stopped.
        device: None for the best there is.

    Raises:
        TypeError: if it is no problem.
        WeightsFileError: if the checkpoint cannot be read or belongs to another run.
    """

    def __init__(
        self,
        optimizer: LearnedRule,
        problem: Problem,
        settings: MetaTraining | None = None,
        *,
        checkpoint: str | Path | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        check_problem(problem)
        self.device = pick_device(device)
        self.optimizer = optimizer.to(self.device)
        self.problem = problem
        self.settings = settings or MetaTraining()
        self.history = History(problem.config(), self.settings, str(self.device), [])
        self._checkpoint = None if checkpoint is None else user_path(checkpoint)
        self._meta_optimizer = torch.optim.Adam(optimizer.parameters(), lr=self.settings.meta_lr)
        self._best = self._weights()
        self._rank, self._processes = rank_and_world_size()
        if (self.settings.shards or 1) % self._processes:
            raise ValueError(
                f"meta-training on {self._processes} processes needs shards that they can share: set shards to a "
                f"multiple of {self._processes}, got {self.settings.shards!r}."
            )
        self._earlier_seconds = 0.0
        self._started = time.monotonic()
        if self._checkpoint is not None and self._checkpoint.exists():
            self._resume(self._checkpoint)

    @property
    def seconds(self) -> float:
        """Meta-training time so far, that of earlier sessions included."""
        return self._earlier_seconds + time.monotonic() - self._started

    def run(self) -> Generator[Progress]:
        """Train, one `Progress` at a time.

        Raises:
            MetaTrainingDivergedError: if a loss or meta-gradient becomes NaN or infinite. The optimizer then holds
                the best weights so far, and the checkpoint the last good epoch.
            RuntimeError: if this trainer has run before.
        """
        if self.history.stopped != "ready":
            raise RuntimeError("a MetaTrainer runs once; make another one, with the same checkpoint to go on.")
        settings = self.settings
        self._unrollers = {
            shard: self._unroller() for shard in range(self._rank, settings.shards or 1, self._processes)
        }
        self._started = time.monotonic()
        self.history.stopped = "running"
        validation = validation_batch(self.problem, settings, self.device)
        try:
            if not self.history.records:
                yield self._validate(0, math.nan, validation)
            for epoch in range(len(self.history.records), settings.epochs + 1):
                total = 0.0
                for number in range(settings.episodes_per_epoch):
                    episode = (epoch - 1) * settings.episodes_per_epoch + number
                    try:
                        loss = self._episode(episode)
                    except MetaTrainingDivergedError as error:
                        self.history.stopped = "diverged"
                        best = self.history.best
                        raise MetaTrainingDivergedError(
                            f"{error} of episode {episode} (epoch {epoch}, meta_lr {settings.meta_lr:g}). The "
                            f"optimizer now holds the best weights so far, those of epoch {best.epoch} (validation "
                            f"loss {best.validation_loss:.4g}). A lower meta_lr usually helps."
                        ) from error
                    total += loss
                    yield self._progress(epoch, episode + 1, loss, None)
                mean = total / settings.episodes_per_epoch
                yield self._validate(epoch, mean, validation)
            self.history.stopped = "finished"
        finally:
            if self.history.stopped == "running":
                self.history.stopped = "cancelled"
            self.optimizer.load_state_dict(self._best)
            self.optimizer.zero_grad(set_to_none=True)

    def _unroller(self) -> Unroller:
        settings = self.settings
        if settings.second_derivatives and self.optimizer.coupled:
            return AutogradUnroller(self.optimizer, second_derivatives=True)
        if settings.second_derivatives:
            return ExactUnroller(self.optimizer)
        return ReplayUnroller(self.optimizer, sample=settings.sample)

    def _episode(self, episode: int) -> float:
        """One batch of optimizees over the horizon; returns the mean loss along it."""
        settings = self.settings
        for shard, unroller in self._unrollers.items():
            which = (episode,) if settings.shards is None else (episode, shard)
            size = settings.batch_size // (settings.shards or 1)
            tasks = draw(self.problem, size, generator(settings.seed, "meta-train", *which), self.device)
            unroller.begin(tasks, generator(settings.seed, "replayed coordinates", *which))
        for group in self._meta_optimizer.param_groups:
            group["lr"] = settings.meta_lr_at(episode)
        total, step = 0.0, 0
        for unroll in settings.windows:
            windows = [unroller.advance(unroll) for unroller in self._unrollers.values()]
            step += unroll
            for name, weight in self.optimizer.named_parameters():
                weight.grad = all_reduce_mean(
                    torch.stack([window.meta_gradient[name] for window in windows]).mean(dim=0)
                )
            norm = torch.nn.utils.clip_grad_norm_(self.optimizer.parameters(), settings.clip_norm or math.inf)
            if not norm.isfinite():
                raise MetaTrainingDivergedError(f"the meta-gradient became {norm.item()} at step {step}")
            self._meta_optimizer.step()
            losses = torch.stack([window.losses.mean(dim=1).sum() for window in windows])
            total += all_reduce_mean(losses.mean()).item()
        return total / settings.horizon

    def _validate(self, epoch: int, training_loss: float, validation: TaskBatch) -> Progress:
        """End an epoch: validate, record, keep if best, save."""
        settings = self.settings
        like = next(iter(validation.initial_params.values()))
        if self._rank == 0:
            losses = rollout(self.optimizer, validation, settings.horizon).to(like)
        else:
            losses = like.new_empty(settings.validation_tasks, settings.horizon + 1)
        losses = broadcast_from_first(losses)
        final = losses[:, -1].mean().item()
        best = min((record.validation_loss for record in self.history.records), key=_nan_last, default=math.nan)
        self.history.records.append(EpochRecord(epoch, training_loss, final, self.seconds))
        if _nan_last(final) < _nan_last(best):
            self._best = self._weights()
        if self._checkpoint is not None and self._rank == 0:
            self._save(self._checkpoint)
        return self._progress(epoch, epoch * settings.episodes_per_epoch, training_loss, losses)

    def _progress(self, epoch: int, episode: int, training_loss: float, losses: Tensor | None) -> Progress:
        settings = self.settings
        best = self.history.best.validation_loss
        return Progress(epoch, settings.epochs, episode, settings.episodes, training_loss, losses, best, self.seconds)

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.optimizer.state_dict().items()}

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be continued."""
        identity = {
            "optimizer": self.optimizer.config(),
            "problem": self.problem.config(),
            "settings": asdict(self.settings),
        }
        plain: dict[str, Any] = json.loads(json.dumps(identity))  # as a checkpoint has it: tuples are lists there
        return plain

    def _save(self, path: Path) -> None:
        tensors = {f"weights.{name}": tensor for name, tensor in self._weights().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self._best.items()}
        for index, state in self._meta_optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": tensor for name, tensor in state.items()}
        records = [asdict(record) for record in self.history.records]
        write_tensors(path, tensors, {**self._identity(), "history": records}, CHECKPOINT_VERSION)

    def _resume(self, path: Path) -> None:
        tensors, about = read_tensors(path, CHECKPOINT_VERSION)
        for part, mine in self._identity().items():
            theirs = about.get(part)
            theirs = with_current_names(theirs) if isinstance(theirs, dict) else {}
            differing = sorted(key for key in mine | theirs if mine.get(key) != theirs.get(key))
            if differing:
                listed = ", ".join(f"{key} {theirs.get(key)!r} (now {mine.get(key)!r})" for key in differing)
                raise WeightsFileError(
                    f"{path}: a checkpoint of another run, whose {part} had {listed}. Continue it with those, or name "
                    "another file, or delete this one to start anew."
                )
        best, weights = _with_prefix(tensors, "best."), _with_prefix(tensors, "weights.")
        adam, records = self._meta_optimizer.state_dict(), _records(path, about)
        for index, weight in enumerate(self.optimizer.parameters()):
            if state := _with_prefix(tensors, f"adam.{index}."):
                shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
                if shapes != {"step": (), "exp_avg": tuple(weight.shape), "exp_avg_sq": tuple(weight.shape)}:
                    raise WeightsFileError(
                        f"{path}: Adam's state of weight {index} has other parts or shapes: {shapes}."
                    )
                check_finite(state, f"{path} (Adam's state of weight {index})")
                adam["state"][index] = state
        load_weights(self.optimizer, best, f"{path} (best weights)")
        load_weights(self.optimizer, weights, str(path))
        self._best, self.history.records = best, records
        self._meta_optimizer.load_state_dict(adam)
        self._earlier_seconds = records[-1].seconds


def _records(path: Path, about: dict[str, Any]) -> list[EpochRecord]:
    """The history that a checkpoint holds: a record for each epoch from 0."""
    try:
        records = [EpochRecord(**record) for record in about["history"]]
        numbers = all(isinstance(value, int | float) for record in records for value in asdict(record).values())
        if numbers and records and [record.epoch for record in records] == list(range(len(records))):
            return records
    except (KeyError, TypeError) as error:
        raise WeightsFileError(f"{path}: its history cannot be used ({error}).") from error
    raise WeightsFileError(f"{path}: its history cannot be used: {about['history']!r}.")


def _nan_last(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def meta_train(
    optimizer: LearnedRule,
    problem: Problem,
    *,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    **settings: Any,
) -> History:
    """Meta-train an optimizer in place, with a progress bar; afterwards it holds the best weights by validation.

    Interrupting it (Ctrl-C, or "stop" in a notebook) ends the training and keeps the best weights so far.

    Args:
        optimizer: is trained in place.
        problem: where the optimizees come from.
        checkpoint: as in `MetaTrainer`.
        device: as in `MetaTrainer`.
        progress: show a progress bar.
        settings: the fields of `MetaTraining`: horizon, unroll, epochs, meta_lr, seed and the rest.

    Returns:
        A record per epoch, and how the run ended.

    Raises:
        ValueError: for settings that make no sense.
        WeightsFileError: if the checkpoint cannot be read or belongs to another run.
        MetaTrainingDivergedError: if a loss or meta-gradient becomes NaN or infinite.
    """
    known = [field.name for field in fields(MetaTraining)]
    for name in settings:
        if name not in known:
            raise UnknownNameError("meta-training setting", name, known)
    trainer = MetaTrainer(optimizer, problem, MetaTraining(**settings), checkpoint=checkpoint, device=device)
    done = (len(trainer.history.records) - 1) * trainer.settings.episodes_per_epoch
    events = trainer.run()
    # tqdm's own switch for headless runs, which its notebook bar does not look at.
    quiet = not progress or bool(os.environ.get("TQDM_DISABLE")) or rank_and_world_size()[0] > 0
    with tqdm(total=trainer.settings.episodes, initial=max(done, 0), unit="episode", disable=quiet) as bar:
        try:
            for event in events:
                bar.update(event.episode - bar.n)
                bar.set_postfix(
                    loss=f"{event.training_loss:.3g}", validation=f"{event.best_validation_loss:.3g}", refresh=False
                )
        except KeyboardInterrupt:
            events.close()
    return trainer.history
