"""A look into an optimizer: what it proposes for a coordinate, what its LSTM holds, where its meta-gradient points."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from l2l_kit.evaluation.compare import paired_tasks
from l2l_kit.optimizers import LSTMRule, Optimizer, UpdateRule
from l2l_kit.problems import Problem
from l2l_kit.problems.base import draw
from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout, Tensors, pick_device
from l2l_kit.training import FirstOrderEstimator, SecondOrderEstimator, trajectory

if TYPE_CHECKING:
    import pandas as pd


def recorded_gradients(
    optimizer: Optimizer[Any],
    problem: Problem,
    *,
    steps: int = 100,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Tensors:
    """The gradients that an optimizer meets on its way over one optimizee.

    Args:
        optimizer: learned or not.
        problem: where the optimizee comes from; it is the first of those of `compare` with this seed.
        steps: number of updates.
        seed: of the optimizee.
        device: None for the best there is.

    Returns:
        By parameter, ∇f(θ(0)) … ∇f(θ(steps)), shape ``(steps + 1, coordinates)``, on the CPU.
    """
    ((_, rule, tasks),) = paired_tasks({"": optimizer}, problem, 1, seed, device)
    layout = Layout.of(tasks.initial_params)
    rows = [point.gradients for point in trajectory(rule, tasks, steps)]
    return {name: tensor.flatten(1).cpu() for name, tensor in layout.unravel(torch.cat(rows)).items()}


def proposals(optimizers: Mapping[str, Optimizer[Any]], history: Tensor, gradients: Tensor) -> dict[str, Tensor]:
    """The updates that optimizers would propose for a coordinate, as a function of its gradient (appendix B).

    All of them have met the same gradients before, so what they remember of the coordinate is what they would have if
    they had been on that trajectory.

    Args:
        optimizers: by name.
        history: gradients of the coordinate along a trajectory, shape ``(steps,)``.
        gradients: at which the function is evaluated, shape ``(gradients,)``.

    Returns:
        By name, the update at every gradient after 0 … ``steps`` of the history, shape ``(steps + 1, gradients)``.
    """
    found = {}
    probes = {"coordinate": gradients[:, None]}  # as many optimizees of one coordinate
    for name, optimizer in optimizers.items():
        state = optimizer.init(probes)
        rows = []
        for gradient in (*history, None):
            updates, _ = optimizer.update(probes, copy.deepcopy(state), probes)
            rows.append(updates["coordinate"][:, 0])
            if gradient is not None:
                _, state = optimizer.update(
                    {"coordinate": gradient.expand_as(probes["coordinate"]).clone()}, state, probes
                )
        found[name] = torch.stack(rows)
    return found


def responses(optimizers: Mapping[str, Optimizer[Any]], gradients: Tensor) -> dict[str, Tensor]:
    """The updates with which optimizers answer the gradients that coordinates meet one after the other.

    Args:
        optimizers: by name.
        gradients: shape ``(steps, coordinates)``.

    Returns:
        By name, the updates, shape ``(steps, coordinates)``.
    """
    found = {}
    for name, optimizer in optimizers.items():
        state = optimizer.init({"coordinates": gradients[:1]})
        moved = []
        for row in gradients:
            updates, state = optimizer.update({"coordinates": row[None]}, state, {"coordinates": row[None]})
            moved.append(updates["coordinates"][0])
        found[name] = torch.stack(moved)
    return found


def hidden_units(lstm: LSTMRule, gradients: Tensor) -> Tensor:
    """What an LSTM holds along a trajectory.

    Args:
        lstm: what to look into.
        gradients: of some coordinates, shape ``(steps, coordinates)``.

    Returns:
        The cells' outputs after each step, layer after layer, shape ``(steps, layers · hidden, coordinates)``.
    """
    state = lstm.initial_state(gradients.shape[1])
    held = []
    for row in gradients:
        _, state = lstm.step(row, state)
        held.append(state.hidden.flatten(0, 1))
    return torch.stack(held)


def meta_gradient_bias(
    optimizer: UpdateRule,
    problem: Problem,
    *,
    unrolls: Iterable[int],
    horizon: int = 100,
    num_tasks: int = 64,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """How far meta-gradients of truncated backpropagation, with dashed edges and without, are from the whole one.

    The whole one backpropagates through the whole horizon and along the dashed edges of figure 2: it is the gradient of
    what is minimized (equation 3). The others are summed over the windows of a run, whose weights stay what they are.
    All are those of two batches of optimizees, which also tell how much a meta-gradient depends on the batch.

    Args:
        optimizer: at whose weights.
        problem: where the optimizees come from.
        unrolls: lengths of the windows; they must divide the horizon.
        horizon: number of updates.
        num_tasks: number of optimizees in each batch.
        seed: of the optimizees.
        device: None for the best there is.

    Returns:
        Columns `unroll`, `dashed edges` (whether they were followed), `cosine` to the whole meta-gradient, `size`, its
        norm as a share of the whole one's, and `agreement`, the cosine between the two batches' meta-gradients.

    Raises:
        ValueError: for an unroll that does not divide the horizon.
    """
    import pandas as pd

    chosen, lengths = pick_device(device), sorted({*unrolls, horizon})
    if wrong := [unroll for unroll in lengths if unroll < 1 or horizon % unroll]:
        raise ValueError(f"unroll lengths must divide the horizon {horizon}, got {wrong[0]!r}.")
    optimizer.to(chosen)
    names = [name for name, _ in optimizer.named_parameters()]
    found = {}
    for dashed, unroller in ((False, FirstOrderEstimator(optimizer)), (True, SecondOrderEstimator(optimizer))):
        for unroll in lengths:
            batches = []
            for batch in range(2):
                unroller.reset(draw(problem, num_tasks, generator(seed, "test", batch), chosen))
                windows = [unroller.unroll(unroll).meta_gradient for _ in range(horizon // unroll)]
                rows = [torch.cat([window[name].flatten() for name in names]) for window in windows]
                batches.append(torch.stack(rows).sum(dim=0))
            found[dashed, unroll] = torch.stack(batches)
    whole = found[True, horizon].mean(dim=0)
    table = []
    for (dashed, unroll), pair in found.items():
        gradient, agreement = pair.mean(dim=0), torch.cosine_similarity(pair[0], pair[1], dim=0).item()
        cosine = torch.cosine_similarity(gradient, whole, dim=0).item()
        table.append((unroll, dashed, cosine, (gradient.norm() / whole.norm()).item(), agreement))
    return pd.DataFrame(table, columns=["unroll", "dashed edges", "cosine", "size", "agreement"])


class TensorMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Counts, while it is entered, the bytes of the tensors that torch makes and that are alive at once.

    Attributes:
        peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._alive = 0
        self._counted: set[int] = set()

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        known = self._counted | _storages((args, kwargs)).keys()  # a view has the storage of what it is a view of
        for key, storage in _storages(made).items():
            if key not in known:
                self._counted.add(key)
                self._alive += storage.nbytes()
                weakref.finalize(storage, self._forget, key, storage.nbytes())
        self.peak = max(self.peak, self._alive)
        return made

    def _forget(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self._alive -= size


def _storages(tree: Any) -> dict[int, torch.UntypedStorage]:
    """What the tensors in a tree lie in, by address."""
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
    return {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}
