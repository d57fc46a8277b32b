"""Problems of one's own without a class: from two functions (`Problem.from_functions`), or from any `nn.Module`."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy

from l2l_kit.problems.base import Problem, StoredTasks
from l2l_kit.randomness import generator as make_generator
from l2l_kit.tensors import Tensors, parameter_kinds

_ONE_AT_A_TIME = threading.Lock()  # the kernel of attention is chosen for all threads
Batches = Callable[[torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class FunctionTasks(StoredTasks):
    """``n`` tasks whose loss is written for one, ``loss(params, data, *minibatch)``; `seeds` are their minibatches'."""

    name: str
    data: Tensors
    loss: Callable[..., Tensor]
    batches: Batches | None = None
    seeds: tuple[int, ...] = ()

    def losses(self, params: Tensors, step: int) -> Tensor:
        minibatch: list[Tensor] = []
        if self.batches is not None:
            device = next(iter(params.values())).device
            drawn = [self.batches(make_generator(seed, "minibatch", step)) for seed in self.seeds]
            for each in drawn:
                if not isinstance(each, tuple | list) or [isinstance(part, Tensor) for part in each] != [True, True]:
                    raise TypeError(f"{self.name}: batches must give two tensors, inputs and targets, got {each!r}.")
            if len(sizes := {tuple(part.shape for part in each) for each in drawn}) > 1:
                first, other, *_ = sorted([*map(tuple, each)] for each in sizes)
                raise ValueError(f"{self.name}: batches gave minibatches of different shapes, {first} and {other}.")
            minibatch = [torch.stack(each).to(device) for each in zip(*drawn, strict=True)]
        try:
            # vmap would run any other kernel of attention task by task.
            with _ONE_AT_A_TIME, sdpa_kernel(SDPBackend.MATH):
                return vmap(self.loss)(params, self.data, *minibatch)
        except Exception as error:  # a loss can fail in any way
            if isinstance(error, RuntimeError) and "randomness" in str(error):
                raise ValueError(
                    f"{self.name}: its loss draws at random, as dropout does, so that no two runs would meet the same "
                    "losses. Set dropout to 0, or draw from the generator that is given to your functions."
                ) from error
            raise ValueError(
                f"{self.name}: its loss failed. It is written for one task, and torch.func.vmap runs it on a batch of "
                "them: it must give a tensor, computed without .item(), numpy, an `if` on the value of a tensor, or "
                f"what vmap cannot run, such as nn.LSTM. The error was {type(error).__name__}: {error}"
            ) from error

    def select(self, index: int) -> FunctionTasks:
        chosen = slice(index, index + 1)
        initial, data = ({name: each[chosen] for name, each in part.items()} for part in (self.initial, self.data))
        return replace(self, initial=initial, data=data, seeds=self.seeds[chosen])


@dataclass(frozen=True)
class _Named(Problem):
    """A problem of which files record the name alone."""

    name: str  # type: ignore[misc]  # of each problem, and not of the class

    functions: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        for field in self.functions:
            if not callable(value := getattr(self, field)):
                raise TypeError(f"{self.name}: {field} must be a function, got {value!r}.")

    def config(self) -> dict[str, object]:
        return {"name": self.name}


@dataclass(frozen=True)
class FunctionProblem(_Named):
    """See `Problem.from_functions`."""

    functions = "init", "loss"

    init: Callable[[torch.Generator], tuple[Tensors, Tensors]]
    loss: Callable[[Tensors, Tensors], Tensor]

    def sample(self, num_tasks: int, generator: torch.Generator, device: torch.device | None = None) -> FunctionTasks:
        try:
            with suppress(ValueError):  # functions of C have no signature
                inspect.signature(self.init).bind(generator)
        except TypeError as error:
            raise TypeError(f"{self.name}: init must be a function of one generator: {error}.") from error
        drawn = [self.init(generator) for _ in range(num_tasks)]
        for task in drawn:
            if not isinstance(task, tuple) or [*map(type, task)] != [dict, dict]:
                raise TypeError(f"{self.name}: expected init to give two dicts, params and data, got {task!r}.")
        params, data = (
            {name: each.to(device) for name, each in self._stacked(part, tasks).items()}
            for part, tasks in zip(("params", "data"), zip(*drawn, strict=True), strict=True)
        )
        return FunctionTasks(params, self.name, data, self.loss)

    def _stacked(self, part: str, tasks: Sequence[Tensors]) -> Tensors:
        for name, value in (item for task in tasks for item in task.items()):
            if not isinstance(value, Tensor):
                raise TypeError(f"{self.name}: expected init to give tensors, got {part}[{name!r}] = {value!r}.")
        first, *others = ({name: tuple(value.shape) for name, value in task.items()} for task in tasks)
        if other := next((shapes for shapes in others if shapes != first), None):
            raise ValueError(f"{self.name}: init gave {part} of different shapes to two tasks, {first} and {other}.")
        return {name: torch.stack([task[name] for task in tasks]) for name in first}


@dataclass(frozen=True)
class ModuleProblem(_Named):
    """A network of one's own on minibatches: any `nn.Module`, from fresh weights for each task.

    For rules with an LSTM for each kind, parameters are of the kinds that `l2l_kit.parameter_groups` gives them,
    with which their names begin: "conv.features.0.weight". Frozen parameters and buffers stay as they are. Batch
    normalisation normalises by the minibatch at hand and keeps no running statistics, unless it is in evaluation
    mode. Modules that draw at random, such as dropout, are refused. A coordinate that never has a gradient is moved
    all the same, if the learned rule moves it; `LearnedOptimizer` leaves it where it is.

    Args:
        name: as in `Problem.from_functions`.
        make_model: makes a module with fresh weights. While it is called, torch's global generator is
            seeded from the task; afterwards it is as before.
        batches: draws a minibatch, ``inputs, targets = batches(generator)``. A task's minibatch depends on the task and
            on the step alone, so that every optimizer meets the same ones.
        loss: ``loss(model(inputs), targets)``, a scalar tensor, such as `torch.nn.functional.cross_entropy`.
    """

    functions = "make_model", "batches", "loss"

    make_model: Callable[[], nn.Module]
    batches: Batches
    loss: Callable[[Tensor, Tensor], Tensor]

    def sample(self, num_tasks: int, generator: torch.Generator, device: torch.device | None = None) -> FunctionTasks:
        seeds = tuple(torch.randint(2**62, (num_tasks,), generator=generator).tolist())
        models, given = [], isinstance(self.make_model, nn.Module)
        for seed in seeds:
            with torch.random.fork_rng(devices=()):
                torch.default_generator.manual_seed(seed)
                made = self.make_model if given else self.make_model()
            if given or not isinstance(made, nn.Module):
                raise TypeError(
                    f"{self.name}: expected make_model to be a function that makes a module, such as "
                    f"lambda: nn.Linear(2, 1), got {made!r}."
                )
            sparse = (isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse for part in made.modules())
            if any(map(is_lazy, (*made.parameters(), *made.buffers()))) or any(sparse):
                raise ValueError(
                    f"{self.name}: its module must have parameters of known shapes (nn.Linear, not nn.LazyLinear) and "
                    f"dense gradients (no sparse=True), got {made!r}."
                )
            if any(map(_keeps_statistics, made.modules())):
                made = copy.deepcopy(made)
                for part in filter(_keeps_statistics, made.modules()):
                    replace_all_batch_norm_modules_(part)
            models.append(made)
        self._check_alike(models)
        kinds = parameter_kinds(models[0])
        names = {f"{kinds[each]}.{name}": name for name, each in models[0].named_parameters() if each.requires_grad}
        if not names:
            raise ValueError(f"{self.name}: all parameters of its module are frozen, or it has none.")
        # Not by torch.func.stack_module_state: each parametrized module is of a class of its own, which it refuses.
        parts = ([dict(each.named_parameters()) for each in models], [dict(each.named_buffers()) for each in models])
        weights, buffers = (
            {name: torch.stack([each[name].detach() for each in part]).to(device) for name in part[0]} for part in parts
        )
        model = models[0].to(device)

        def loss(params: Tensors, data: Tensors, inputs: Tensor, targets: Tensor) -> Tensor:
            state = data | {names[name]: weight for name, weight in params.items()}
            return self.loss(functional_call(model, state, (inputs,)), targets)

        params = {name: weights.pop(own) for name, own in names.items()}
        return FunctionTasks(params, self.name, weights | buffers, loss, self.batches, seeds)

    def _check_alike(self, models: Sequence[nn.Module]) -> None:
        """Refuse modules that differ in more than their weights: all tasks are run by the first one's code."""
        first, *others = map(_anatomy, models)
        for pair in (pair for other in others for pair in zip_longest(first, other)):
            if pair[0] != pair[1]:
                raise ValueError(
                    f"{self.name}: make_model gave different modules to two tasks: {pair[0]} and {pair[1]}. Only their "
                    "weights may differ."
                )


def _anatomy(model: nn.Module) -> list[str]:
    """What a module is made of, a text for each part: its modules, torch's with their settings, and its tensors."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return [
        *(
            f"{name} {part if type(part).__module__.startswith('torch.nn.') and not [*part.children()] else type(part)}"
            for name, part in model.named_modules()
        ),
        *(f"{name} of shape {tuple(tensor.shape)}" for name, tensor in tensors),
    ]


def _keeps_statistics(module: nn.Module) -> bool:
    """Whether it is a batch normalisation that would change its running statistics."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
