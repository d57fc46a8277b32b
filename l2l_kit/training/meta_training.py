"""The meta-training loop (section 3 of the paper)."""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from l2l_kit.errors import Count, MetaTrainingDivergedError, Positive, WeightsFileError, check_fields
from l2l_kit.extras import pd
from l2l_kit.optimizers import UpdateRule
from l2l_kit.paths import user_path
from l2l_kit.problems import Problem, TaskBatch
from l2l_kit.problems.base import check_problem, draw
from l2l_kit.processes import all_reduce_mean, rank_and_world_size
from l2l_kit.randomness import generator
from l2l_kit.storage import check_finite, in_json, load_weights, read_tensors, write_tensors
from l2l_kit.tensors import Device, Tensors, pick_device
from l2l_kit.training.dashboard import Log, scalar_log
from l2l_kit.training.meta_gradient import FirstOrderEstimator, SecondOrderEstimator
from l2l_kit.training.rollout import rollout

CHECKPOINT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class MetaTraining:
    """The settings of a meta-training run. Together with problem, rule and machine they determine every bit of it.

    Args:
        horizon: steps for which the tasks are run, T in equation 3.
        unroll: steps of each window of truncated backpropagation, of which the last one may be shorter; one meta-update
            follows each window.
        epochs: the run validates before training and after each epoch; the weights with the best final validation loss
            are kept.
        patience: end the run early, after so many epochs whose validation loss was not the best so far; None for never.
        episodes_per_epoch: batches of tasks between two validations.
        batch_size: tasks per batch; the meta-gradient is their mean.
        meta_lr: learning rate of Adam, the meta-optimizer.
        schedule: of the meta-learning rate: "constant", or "cosine", annealed to a hundredth of it over the run.
        clip_norm: upper bound on the norm of the meta-gradient, lest the steep first window dominate; None for none.
        validation_tasks: number of tasks that every validation uses; none of them is trained on.
        second_derivatives: keep the gradients along the dashed edges of figure 2.
        sample: take the meta-gradient on so many coordinates of each parameter tensor, drawn anew for each window:
            faster, noisier, and right on average. None for all coordinates, as a network of one's own needs it.
        shards: number of parts of equal size into which a batch is cut, each drawn on its own, for several processes to
            share: how many does not matter but for rounding. None for a batch drawn as a whole.
        seed: seed of all draws.

    Raises:
        ValueError: for a setting that makes no sense, such as an unroll longer than the horizon.
    """

    horizon: Count = 100
    unroll: Count = 20
    epochs: Count = 50
    patience: Count | None = None
    episodes_per_epoch: Count = 20
    batch_size: Count = 128
    meta_lr: Positive = 0.003
    schedule: Literal["constant", "cosine"] = "cosine"
    clip_norm: Positive | None = 1.0
    validation_tasks: Count = 256
    second_derivatives: bool = False
    sample: Count | None = None
    shards: Count | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, "meta-training")
        if self.sample is not None and self.second_derivatives:
            raise ValueError("meta-training: with second_derivatives all coordinates are needed; leave sample None.")
        if self.batch_size % (self.shards or 1):
            raise ValueError(f"meta-training: batch_size {self.batch_size} cannot be cut into {self.shards} shards.")
        if self.unroll > self.horizon:
            raise ValueError(f"meta-training: unroll {self.unroll} is longer than the horizon {self.horizon}.")

    @property
    def episodes(self) -> int:
        """Batches of tasks in the whole run."""
        return self.epochs * self.episodes_per_epoch

    @property
    def windows(self) -> list[int]:
        """Lengths of the windows into which the horizon is cut."""
        return [min(self.unroll, self.horizon - first) for first in range(0, self.horizon, self.unroll)]

    def meta_lr_at(self, episode: int) -> float:
        """The meta-learning rate in an episode, counted from 0."""
        if self.schedule == "constant":
            return self.meta_lr
        return self.meta_lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * episode / self.episodes)))


class EpochRecord(NamedTuple):
    """One line of a `History`."""

    epoch: int  # 0 is the rule before any training
    training_loss: float  # f(θ(t)), averaged over steps, tasks and episodes; NaN in epoch 0
    validation_loss: float  # f(θ(horizon)), averaged over the validation tasks
    seconds: float  # meta-training time so far


@dataclass
class History:
    """A meta-training run: the configuration of its problem, its settings, and a record per epoch.

    Attributes:
        device: what it ran on, such as "cpu".
        stopped: how it stands: not begun ("ready"), under way ("running"), done ("finished"), stopped by its user
            ("cancelled"), or ended by a loss that became NaN or infinite ("diverged").
    """

    problem: dict[str, object]
    settings: MetaTraining
    device: str
    records: list[EpochRecord]
    stopped: Literal["ready", "running", "finished", "cancelled", "diverged"] = "ready"

    @property
    def best(self) -> EpochRecord:
        """The record of the epoch whose weights are kept."""
        return min(self.records, key=lambda record: (math.isnan(record.validation_loss), record.validation_loss))

    def about(self) -> dict[str, object]:
        """A summary of the run for the rule's card."""
        about: dict[str, object] = {"problem": self.problem, "training": asdict(self.settings)}
        if self.records:  # there are none if the run was cancelled before the first validation
            episodes = self.records[-1].epoch * self.settings.episodes_per_epoch
            about["trained"] = {
                "episodes": episodes,
                "meta_updates": episodes * len(self.settings.windows),
                "seconds": round(self.records[-1].seconds),
                "device": self.device,
                "best_epoch": self.best.epoch,
                "validation_loss": self.best.validation_loss,
                "stopped": self.stopped,
            }
        return about

    def to_frame(self) -> pd.DataFrame:
        """The records as a table with a row per epoch."""
        return pd.DataFrame(self.records, columns=EpochRecord._fields).set_index("epoch")


class Progress(NamedTuple):
    """Where a run stands, after an episode or a validation."""

    epoch: int  # the epoch under way; 0 before the first
    episode: int  # number of episodes done
    training_loss: float  # averaged over the last episode or, after a validation, over the epoch; NaN in epoch 0
    validation_losses: Tensor | None  # after a validation, f(θ(0)) … f(θ(horizon)), (validation_tasks, horizon + 1)


def validation_batch(problem: Problem, settings: MetaTraining, device: torch.device | None = None) -> TaskBatch:
    """The tasks on which a run with these settings validates."""
    return draw(problem.validation_problem(), settings.validation_tasks, generator(settings.seed, "validation"), device)


class MetaTrainer:
    """Meta-trains a rule in place, in a loop of your own: iterate over `run`. `meta_train` is such a loop.

    To cancel, stop iterating and close the generator. However the run ends, the rule then holds the weights with the
    best validation loss, and `history` records the run. Where torchrun started several processes (see `process_group`),
    each runs its share of the shards; all take the same meta-updates and validate, and the first one saves.

    Args:
        settings: None for the defaults of `MetaTraining`.
        checkpoint: file in which the run is saved after each epoch. If it exists, the run continues from it, bit for
            bit as if it had never stopped.
        log_dir: folder in which TensorBoard finds, by episode, the losses in training and validation, the norm of the
            meta-gradient before clipping, the meta-learning rate and the speed. A run that continues goes on there.
        device: None for the best there is.

    Raises:
        ValueError: if the processes cannot share the shards, a weight of the rule is frozen, or for the checkpoint of
            another run (`WeightsFileError`).
    """

    def __init__(
        self,
        rule: UpdateRule,
        problem: Problem,
        settings: MetaTraining | None = None,
        *,
        checkpoint: str | Path | None = None,
        log_dir: str | Path | None = None,
        device: Device = None,
    ) -> None:
        check_problem(problem)
        settings = MetaTraining() if settings is None else settings
        for name, given, wanted in (("rule", rule, UpdateRule), ("settings", settings, MetaTraining)):
            if not isinstance(given, wanted):
                raise TypeError(f"meta-training: {name} must be of type {wanted.__name__}, got {given!r}.")
        if frozen := ", ".join(name for name, weight in rule.named_parameters() if not weight.requires_grad):
            raise ValueError(
                f"meta-training: all weights of a rule are trained, so none may be frozen, as {frozen} are."
            )
        self.device = pick_device(device)
        self.rule, self.problem, self.settings = rule.to(self.device), problem, settings
        self.history = History(problem.config(), self.settings, str(self.device), [])
        self._rank, self._processes = rank_and_world_size()
        if (self.settings.shards or 1) % self._processes:
            number = f"{self._processes} processes needs shards that they can share, a multiple of {self._processes}"
            raise ValueError(f"meta-training on {number}, got {self.settings.shards!r}.")
        self._meta_optimizer = torch.optim.Adam(rule.parameters(), lr=self.settings.meta_lr)
        self._best = copy.deepcopy(rule.state_dict())
        self._started = time.monotonic()
        self._log_dir = None if log_dir is None or self._rank > 0 else user_path(log_dir)
        self._checkpoint = None if checkpoint is None else user_path(checkpoint)
        self._start: str | None = rule.fingerprint()
        if self._checkpoint is not None and self._checkpoint.exists():
            self._resume(self._checkpoint)

    @property
    def seconds(self) -> float:
        """Meta-training time so far, including earlier sessions."""
        return time.monotonic() - self._started

    def run(self) -> Generator[Progress]:
        """Train, once; yields a `Progress` after each episode and each validation.

        Raises:
            ImportError: if there is a `log_dir` and tensorboard is not installed.
            MetaTrainingDivergedError: if a loss or meta-gradient becomes NaN or infinite. The rule then holds the best
                weights so far, and the checkpoint the last good epoch.
        """
        settings, history = self.settings, self.history
        if history.stopped != "ready":
            raise RuntimeError("a MetaTrainer runs once; make another one, with the same checkpoint to go on.")
        history.stopped = "running"
        try:
            estimators = {
                shard: SecondOrderEstimator(self.rule)
                if settings.second_derivatives
                else FirstOrderEstimator(self.rule, sample=settings.sample)
                for shard in range(self._rank, settings.shards or 1, self._processes)
            }
            validation = validation_batch(self.problem, settings, self.device)
            first = (len(history.records) - 1) * settings.episodes_per_epoch + 1 if history.records else 0
            with scalar_log(self._log_dir, first) as log:
                if not history.records:
                    yield self._validate(0, math.nan, validation, log)
                for epoch in range(len(history.records), settings.epochs + 1):
                    if settings.patience is not None and epoch - 1 - history.best.epoch >= settings.patience:
                        break
                    total, done = 0.0, (epoch - 1) * settings.episodes_per_epoch
                    for episode in range(done, done + settings.episodes_per_epoch):
                        loss = self._episode(episode, estimators, log)
                        total += loss
                        yield Progress(epoch, episode + 1, loss, None)
                    yield self._validate(epoch, total / settings.episodes_per_epoch, validation, log)
            history.stopped = "finished"
        except MetaTrainingDivergedError as error:
            history.stopped = "diverged"
            untrained = self.rule.fingerprint() == self._start
            usually = "Smaller losses, or a lower output_scale of the rule," if untrained else "A lower meta_lr"
            raise MetaTrainingDivergedError(
                f"{error} of episode {episode} (epoch {epoch}, meta_lr {settings.meta_lr:g}). The optimizer now holds "
                f"the best weights so far, those of epoch {history.best.epoch}. {usually} usually helps."
            ) from error
        finally:
            if history.stopped == "running":
                history.stopped = "cancelled"
            self.rule.load_state_dict(self._best)
            self.rule.zero_grad(set_to_none=True)

    def _episode(
        self, episode: int, estimators: dict[int, FirstOrderEstimator | SecondOrderEstimator], log: Log
    ) -> float:
        """Train on one batch of tasks over the horizon; returns its mean loss."""
        settings, began = self.settings, time.monotonic()
        for shard, estimator in estimators.items():
            which = (episode,) if settings.shards is None else (episode, shard)
            size = settings.batch_size // (settings.shards or 1)
            tasks = draw(self.problem, size, generator(settings.seed, "meta-train", *which), self.device)
            estimator.reset(tasks, generator(settings.seed, "replayed coordinates", *which))
        for group in self._meta_optimizer.param_groups:
            group["lr"] = settings.meta_lr_at(episode)
        total, step, norms = 0.0, 0, list[float]()
        for unroll in settings.windows:
            windows = [estimator.unroll(unroll) for estimator in estimators.values()]
            step += unroll
            for name, weight in self.rule.named_parameters():
                gradients = torch.stack([window.meta_gradient[name] for window in windows])
                weight.grad = all_reduce_mean(gradients.mean(dim=0))
            norm = torch.nn.utils.clip_grad_norm_(self.rule.parameters(), settings.clip_norm or math.inf)
            if not norm.isfinite():
                raise MetaTrainingDivergedError(f"the meta-gradient became {norm.item()} at step {step}")
            norms.append(norm.item())
            self._meta_optimizer.step()
            losses = torch.stack([window.losses.mean(dim=1).sum() for window in windows])
            total += all_reduce_mean(losses.mean()).item()
        loss = total / settings.horizon
        scalars = {"loss/training": loss, "meta_gradient_norm": sum(norms) / len(norms)}
        speed = 1 / (time.monotonic() - began)
        log(episode + 1, {**scalars, "meta_lr": settings.meta_lr_at(episode), "episodes_per_second": speed})
        return loss

    def _validate(self, epoch: int, training_loss: float, validation: TaskBatch, log: Log) -> Progress:
        """End an epoch: validate, record, keep the weights if they are the best, save."""
        losses = rollout(self.rule, validation, self.settings.horizon)
        record = EpochRecord(epoch, training_loss, losses[:, -1].mean().item(), self.seconds)
        self.history.records.append(record)
        if self.history.best is record:
            self._best = copy.deepcopy(self.rule.state_dict())
        episode = epoch * self.settings.episodes_per_epoch
        log(episode, {"loss/validation": record.validation_loss})
        if self._checkpoint is not None and self._rank == 0:
            self._save(self._checkpoint)
        return Progress(epoch, episode, training_loss, losses)

    def _identity(self) -> dict[str, dict[str, object]]:
        """What a checkpoint must have in common with this run, to be continued."""
        parts = {"optimizer": self.rule.config(), "problem": self.problem.config(), "settings": asdict(self.settings)}
        plain: dict[str, dict[str, object]] = in_json(parts)  # as in a checkpoint
        return plain

    def _save(self, path: Path) -> None:
        parts = {"weights": self.rule.state_dict(), "best": self._best}
        parts |= {f"adam.{index}": state for index, state in self._meta_optimizer.state_dict()["state"].items()}
        tensors = {f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
        records = [record._asdict() for record in self.history.records]
        about = {**self._identity(), "start": self._start, "history": records}
        write_tensors(path, tensors, about, CHECKPOINT_VERSION)

    def _check_start(self, path: Path, start: str | None, *kept: Tensors) -> None:
        """Refuse a checkpoint of a run from other weights, or in another precision.

        The rule may also be where an interruption has left it.
        """
        theirs, mine = ({tensor.dtype for tensor in each.values()} for each in (kept[0], self.rule.state_dict()))
        if theirs != mine:
            raise WeightsFileError(f"{path}: a checkpoint in another precision, {theirs} (now {mine}).")
        now = {name: weight.cpu() for name, weight in self.rule.state_dict().items()}
        left = any(all(name in each and torch.equal(now[name], each[name]) for name in now) for each in kept)
        if start not in (None, self._start) and not left:
            raise WeightsFileError(f"{path}: a checkpoint of a run that began with other weights. Use another file.")
        self._start = start

    def _resume(self, path: Path) -> None:
        tensors, about = read_tensors(path, CHECKPOINT_VERSION)
        for part, mine in self._identity().items():
            theirs = about[part] if isinstance(about.get(part), dict) else {}
            differing = sorted(key for key in mine | theirs if mine.get(key) != theirs.get(key))
            if differing:
                listed = ", ".join(f"{key} {theirs.get(key)!r} (now {mine.get(key)!r})" for key in differing)
                raise WeightsFileError(
                    f"{path}: a checkpoint of another run, whose {part} had {listed}. Use those, or another file."
                )

        def part_of(prefix: str) -> Tensors:
            return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}

        adam = self._meta_optimizer.state_dict()
        for index, _ in enumerate(self.rule.parameters()):
            if state := part_of(f"adam.{index}."):
                check_finite(state, f"{path} (Adam's state of weight {index})")
                adam["state"][index] = state
        self._best = part_of("best.")
        self._check_start(path, about.get("start"), self._best, part_of("weights."))
        load_weights(self.rule, self._best, f"{path} (best weights)")
        load_weights(self.rule, part_of("weights."), str(path))
        try:
            self.history.records = [EpochRecord(**record) for record in about["history"]]
            self._started -= float(self.history.records[-1].seconds)
            self._meta_optimizer.load_state_dict(adam)
        except Exception as error:  # a damaged file can fail in any way
            raise WeightsFileError(f"{path}: a checkpoint that cannot be continued ({error}).") from error


def meta_train(
    rule: UpdateRule,
    problem: Problem,
    settings: MetaTraining | None = None,
    *,
    checkpoint: str | Path | None = None,
    log_dir: str | Path | None = None,
    device: Device = None,
    progress: bool = True,
) -> History:
    """Meta-train a rule in place, with a progress bar; afterwards it holds the weights with the best validation loss.

    An interruption (Ctrl-C, or "stop" in a notebook) ends the training and keeps the best weights so far, as a line on
    standard error then says. Arguments and errors are those of `MetaTrainer` and of its `run`.
    """
    trainer = MetaTrainer(rule, problem, settings, checkpoint=checkpoint, log_dir=log_dir, device=device)
    done = max(0, len(trainer.history.records) - 1) * trainer.settings.episodes_per_epoch
    events = trainer.run()
    # TQDM_DISABLE is tqdm's own switch for headless runs, which its notebook bar ignores.
    quiet = not progress or bool(os.environ.get("TQDM_DISABLE")) or rank_and_world_size()[0] > 0
    with tqdm(total=trainer.settings.episodes, initial=done, unit="episode", disable=quiet) as bar:
        try:
            for event in events:
                best = trainer.history.best.validation_loss
                shown = {"loss": event.training_loss, "validation": best}
                numbers = {name: f"{loss:.3g}" for name, loss in shown.items() if not math.isnan(loss)}
                bar.set_postfix(numbers, refresh=False)
                bar.update(event.episode - bar.n)  # which shows all of this
        except KeyboardInterrupt:
            events.close()
    if trainer.history.stopped == "cancelled" and rank_and_world_size()[0] == 0:
        records = trainer.history.records
        best_so_far = (
            f"holds the best weights so far: epoch {trainer.history.best.epoch}'s" if records else "is as it was"
        )
        print(f"Meta-training was stopped. The rule {best_so_far}.", file=sys.stderr)
    return trainer.history
