"""A look into an optimizer: the updates that it proposes, what its state holds, where its meta-gradient points."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from l2l_kit.evaluation.comparison import Optimizers, paired_trajectories
from l2l_kit.extras import pd
from l2l_kit.optimizers import NTMBFGS, LSTMRule, LSTMState, NTMState, Optimizer, UpdateRule
from l2l_kit.optimizers.lstm import LSTMLayer
from l2l_kit.problems import Problem, QuadraticTasks
from l2l_kit.problems.base import draw
from l2l_kit.randomness import generator
from l2l_kit.tensors import Device, Layout, Tensors, pick_device
from l2l_kit.training import FirstOrderEstimator, GradientEstimator, SecondOrderEstimator, trajectory

State = TypeVar("State")


def proposed_steps(
    optimizers: Optimizers,
    problem: Problem,
    *,
    steps: int = 10,
    num_tasks: int = 8,
    seed: int = 0,
    device: Device = None,
) -> pd.DataFrame:
    """How long the updates of optimizers are, and how much against the gradient. Arguments are those of `compare`.

    Returns:
        A row per optimizer, `step` and `parameter` of the optimizee: `size`, the root mean square of the update's
        coordinates, and `descent`, the cosine between the update and the negative gradient; means over the optimizees.
    """
    rows = []
    for name, tasks, points in paired_trajectories(optimizers, problem, steps, num_tasks, seed, device):
        layout = Layout.of(tasks.initial_params)
        for step, (before, after) in enumerate(pairwise(points), start=1):
            updates, descents = layout.unravel(after.params - before.params), layout.unravel(-before.gradients)
            for parameter, update in updates.items():
                flat, descent = update.flatten(1), descents[parameter].flatten(1)
                size = flat.square().mean(dim=1).sqrt().mean().item()
                rows.append((name, step, parameter, size, torch.cosine_similarity(flat, descent).mean().item()))
    return pd.DataFrame(rows, columns=["optimizer", "step", "parameter", "size", "descent"])


def recorded_gradients(
    optimizer: Optimizer[State], problem: Problem, *, steps: int = 100, seed: int = 0, device: Device = None
) -> Tensors:
    """The gradients that an optimizer meets on its way over one optimizee. Arguments are those of `compare`.

    Returns:
        By parameter, ∇f(θ(0)) … ∇f(θ(steps)), shape ``(steps + 1, coordinates)``, on the CPU.
    """
    ((_, tasks, points),) = paired_trajectories({"": optimizer}, problem, steps, 1, seed, device)
    rows = torch.cat([point.gradients for point in points])
    by_name = Layout.of(tasks.initial_params).unravel(rows)
    return {name: gradients.flatten(1).cpu() for name, gradients in by_name.items()}


def proposals(optimizers: Optimizers, history: Tensor, gradients: Tensor) -> dict[str, Tensor]:
    """The updates that optimizers would propose for a coordinate, as a function of its gradient (appendix B).

    Args:
        history: gradients of the coordinate along a trajectory that all of them remember, shape ``(steps,)``.
        gradients: at which the function is evaluated, shape ``(gradients,)``.

    Returns:
        By name, the update at every gradient after 0 … ``steps`` of the history, shape ``(steps + 1, gradients)``.
    """
    probes = gradients[:, None]  # as many optimizees of one coordinate
    met = history[:, None, None].repeat(1, *probes.shape)

    def proposed(optimizer: Optimizer[State]) -> Tensor:
        states = (copy.deepcopy(state) for _, state in _answers(optimizer, met))
        return torch.stack([optimizer.update({"": probes}, state, {"": probes})[0][""][:, 0] for state in states])

    return {name: proposed(optimizer) for name, optimizer in optimizers.items()}


def responses(optimizers: Optimizers, gradients: Tensor) -> dict[str, Tensor]:
    """By name, the updates ``(steps, coordinates)`` with which optimizers answer gradients of that shape."""
    found = {}
    for name, optimizer in optimizers.items():
        updates = [each[0] for each, _ in _answers(optimizer, gradients[:, None])]
        found[name] = torch.stack(updates[1:])
    return found


def hidden_units(lstm: LSTMRule, gradients: Tensor) -> Tensor:
    """The cells' outputs after each of some coordinates' gradients ``(steps, coordinates)``, layer after layer.

    Their shape is ``(steps, layers · hidden, coordinates)``. Of an odd rule, they are for ∇ alone, as in `thoughts`.
    """
    held = []
    for _, (memory,) in _answers(lstm, gradients[:, None]):
        hidden = cast(LSTMState, memory).hidden  # an odd rule has those for ∇ and for -∇ side by side
        held.append(hidden.view(*hidden.shape[:2], -1, hidden.shape[-1])[:, :, 0].flatten(0, 1).clone())
    return torch.stack(held[1:])


class Thoughts(NamedTuple):
    """What an LSTM computes for one coordinate at each step t = 0, 1, ….

    Attributes:
        features: what it is shown of the gradient (appendix A), shape ``(steps, features)``.
        gates: of each layer the input, forget and output gates and the candidate, ``(steps, layers, 4, hidden)``.
        cells: the cell states before the first step and after each, ``(steps + 1, layers, hidden)``.
        outputs: the cells' outputs, as many.
        updates: shape ``(steps,)``.
    """

    features: Tensor
    gates: Tensor
    cells: Tensor
    outputs: Tensor
    updates: Tensor


@torch.no_grad()
def thoughts(lstm: LSTMRule, gradients: Tensor) -> Thoughts:
    """What an LSTM computes as it meets a coordinate's gradients, shape ``(steps,)``.

    Of an odd rule, which computes for -∇ as well, only what it computes for ∇; the updates are the rule's.
    """
    answers = _answers(lstm, gradients[:, None, None])
    updates, held = zip(*((each.clone(), cast(LSTMState, memory)) for each, (memory,) in answers), strict=True)
    outputs, cells = (torch.stack([state[part].flatten(2)[..., 0] for state in held]) for part in (0, 1))
    features = lstm.preprocessing(gradients).T
    gates, signal = [], features
    for number, layer in enumerate(cast("Iterable[LSTMLayer]", lstm.layers)):
        rows = torch.cat([signal, outputs[:-1, number]], dim=1) @ layer.weight.T + layer.bias
        rows = rows.view(len(rows), 4, lstm.hidden_size)
        gates.append(torch.cat([rows[:, :3].sigmoid(), rows[:, 3:].tanh()], dim=1))
        signal = outputs[1:, number]
    return Thoughts(features, torch.stack(gates, dim=1), cells, outputs, torch.stack(updates)[1:].flatten())


def memories(optimizer: NTMBFGS, functions: QuadraticTasks, steps: int) -> Tensor:
    """The memory along the way, as matrices M(0) … M(steps), shape ``(n, steps + 1, coordinates, coordinates)``."""
    gradients = torch.stack([point.gradients for point in trajectory(optimizer, functions, steps)])
    states = (cast(NTMState, memory) for _, (memory,) in _answers(optimizer, gradients[:-1]))
    return torch.stack([state.memory for state in states], dim=1).cpu()


def _answers(optimizer: Optimizer[State], gradients: Tensor) -> Iterator[tuple[Tensor, State]]:
    """How an optimizer answers gradients ``(steps, n, coordinates)``, wherever its updates lead.

    Yields:
        For t = 0 … steps the update g(t - 1), zero at first, and the state h(t), which the next step may overwrite.
    """
    nowhere = {"": gradients.new_zeros(gradients.shape[1:])}
    state = optimizer.init(nowhere)
    yield nowhere[""], state
    for each in gradients:
        updates, state = optimizer.update({"": each}, state, nowhere)
        yield updates[""], state


def meta_gradient_bias(
    optimizer: UpdateRule,
    problem: Problem,
    *,
    unrolls: Iterable[int],
    horizon: int = 100,
    num_tasks: int = 64,
    seed: int = 0,
    device: Device = None,
) -> pd.DataFrame:
    """How far truncated meta-gradients, with second-order terms and without, are from the full one.

    The full one backpropagates through the whole horizon and along the dashed edges of figure 2: it is the gradient of
    what is minimized (equation 3). The others are summed over the windows of a run, whose weights stay what they are.
    All are those of two batches of optimizees, which also tell how much a meta-gradient depends on the batch.

    Args:
        optimizer: at whose weights.
        problem, seed, device: as in `compare`.
        unrolls: lengths of the windows; they must divide the horizon.
        num_tasks: number of optimizees in each batch.

    Returns:
        Columns `unroll`, `second order` (whether these terms were kept), `cosine` to the full meta-gradient, `norm` as
        a share of the full one's, and `cosine of two estimates`, which is that of the two batches' meta-gradients.

    Raises:
        ValueError: for an unroll that does not divide the horizon.
    """
    lengths = sorted({*unrolls, horizon})
    if wrong := [unroll for unroll in lengths if unroll < 1 or horizon % unroll]:
        raise ValueError(f"unroll lengths must divide the horizon {horizon}, got {wrong[0]!r}.")
    chosen = pick_device(device)
    rule = copy.deepcopy(optimizer).to(chosen)

    def meta_gradient(estimator: GradientEstimator, unroll: int, batch: int) -> Tensor:
        estimator.reset(draw(problem, num_tasks, generator(seed, "test", batch), chosen))
        windows = [estimator.unroll(unroll).meta_gradient for _ in range(horizon // unroll)]
        rows = [torch.cat([window[name].flatten() for name, _ in rule.named_parameters()]) for window in windows]
        return torch.stack(rows).sum(dim=0)

    found = {
        (unroll, dashed): torch.stack([meta_gradient(estimator, unroll, batch) for batch in range(2)])
        for dashed, estimator in ((False, FirstOrderEstimator(rule)), (True, SecondOrderEstimator(rule)))
        for unroll in lengths
    }
    whole = found[horizon, True].mean(dim=0)
    rows = []
    for (unroll, dashed), pair in found.items():
        gradient, agreement = pair.mean(dim=0), torch.cosine_similarity(pair[0], pair[1], dim=0)
        cosine, size = torch.cosine_similarity(gradient, whole, dim=0), gradient.norm() / whole.norm()
        rows.append((unroll, dashed, cosine.item(), size.item(), agreement.item()))
    return pd.DataFrame(rows, columns=["unroll", "second order", "cosine", "norm", "cosine of two estimates"])


class TensorMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Counts, while it is entered, the bytes of the tensors that torch makes and that are alive at once.

    Attributes:
        peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._alive = 0
        self._counted: set[int] = set()

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


def _storages(tree: object) -> dict[int, torch.UntypedStorage]:
    """What the tensors in a tree lie in, by address."""
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
    return {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}
