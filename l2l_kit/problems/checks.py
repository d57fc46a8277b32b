"""What is checked of problems, so that a mistake in one of your own is named where it is defined or first used."""

from __future__ import annotations

import inspect
import json
import math
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from l2l_kit.errors import UnknownNameError
from l2l_kit.tensors import Layout, Tensors, ravel

if TYPE_CHECKING:
    from l2l_kit.problems.base import Problem, TaskBatch


def check_method(cls: type, method: str, *arguments: str) -> None:
    """Refuse a class whose method cannot be called with these, in this order, by a TypeError."""
    try:
        inspect.signature(getattr(cls, method)).bind("self", *arguments)
    except TypeError as error:
        listed = ", ".join(("self", *arguments))
        raise TypeError(f"{cls.__name__}.{method}: expected a method ({listed}): {error}.") from error


def check_number(problem: Problem, field: str, kind: type[int] | type[float], low: float, above: bool = False) -> None:
    """Refuse a field that is no finite number of at least `low`, or above it, by a ValueError."""
    value = getattr(problem, field)
    if not isinstance(value, kind | int) or not low <= value < math.inf or (above and value == low):
        wanted = f"{'whole ' if kind is int else ''}number {'above' if above else 'of at least'} {low}"
        raise ValueError(f"{type(problem).__name__}: {field} must be a {wanted}, got {value!r}.")


def check_choice(problem: Problem, field: str, choices: Any) -> None:
    """Refuse a field that is none of a Literal's words, by an UnknownNameError."""
    if (value := getattr(problem, field)) not in get_args(choices):
        raise UnknownNameError(field, value, get_args(choices))


def check_recordable(problem: Problem) -> None:
    """Refuse a problem whose configuration files cannot record, by a TypeError."""
    kind = type(problem)
    if not isinstance(getattr(problem, "name", None), str) or not problem.name:
        raise TypeError(f'{kind.__name__}: expected a name that files record, such as name: ClassVar[str] = "mine".')
    new = [name for name, of in inspect.get_annotations(kind).items() if "ClassVar" not in str(of)]
    if new and "__dataclass_fields__" not in vars(kind):
        raise TypeError(f"{kind.__name__}: expected a dataclass, since it has fields. Write @dataclass(frozen=True).")
    try:
        json.dumps(problem.config())
    except Exception as error:  # objects that cannot even be copied fail in ways of their own
        raise TypeError(
            f"{kind.__name__}: expected fields that JSON can hold, since checkpoints and cards record them: {error}. "
            "Make tensors and other objects in `sample`."
        ) from error


def checked_start(tasks: TaskBatch) -> Tensors:
    """Starting points, once they are known to be what they must be.

    Raises:
        TypeError: if they are no dict of named tensors.
        ValueError: if the tensors have no leading axis of one length, or are not of one floating-point type, and on one
            device.
    """
    where, start = f"{_name(tasks)}.initial_params", tasks.initial_params
    if callable(start):
        raise TypeError(f"{where}: expected a dict of named tensors, got a method. Put @property above it.")
    if not isinstance(start, dict) or not start or not all(isinstance(each, Tensor) for each in start.values()):
        raise TypeError(f"{where}: expected a dict of named tensors, got {start!r}.")
    kinds = {(tensor.dtype, tensor.device, tensor.shape[:1]) for tensor in start.values()}
    if len(kinds) > 1 or not all(tensor.dim() and tensor.is_floating_point() for tensor in start.values()):
        found = ", ".join(f"{name!r} {tuple(each.shape)} {each.dtype} {each.device}" for name, each in start.items())
        raise ValueError(
            f"{where}: expected tensors of one floating-point type, on one device, with a leading axis of one length "
            f"that counts the tasks; got {found}."
        )
    return start


def check_losses(tasks: TaskBatch, losses: object, num_tasks: int) -> Tensor:
    """Losses, once they are known to be a tensor (else a TypeError) with one for each task (else a ValueError)."""
    expected = f"{_name(tasks)}.losses: expected a tensor of shape ({num_tasks},), a loss for each task, got"
    if not isinstance(losses, Tensor):
        raise TypeError(f"{expected} {type(losses).__name__}.")
    if losses.shape != (num_tasks,):
        raise ValueError(f"{expected} {tuple(losses.shape)}. Sum or average over all other axes.")
    return losses


def gradient_of(tasks: TaskBatch, losses: Tensor, point: Tensor) -> Tensor:
    """The gradient of the summed losses; a ValueError if they do not depend on the point."""
    if losses.requires_grad:
        (gradient,) = torch.autograd.grad(losses.sum(), point, allow_unused=True)
        if gradient is not None:
            return gradient
    raise ValueError(
        f"{_name(tasks)}.losses: expected losses that autograd can differentiate by the parameters, got some that do "
        "not depend on them. Compute them from `params` by torch alone: no .detach(), .data, .item() or numpy."
    )


def first_evaluation(tasks: TaskBatch) -> tuple[Layout, Tensor, Tensor, Tensor]:
    """The losses and gradients at the starting points, with which every run begins, and at which tasks are checked.

    Returns:
        Layout of a row, starting points ``(n, coordinates)``, losses ``(n,)`` and gradients ``(n, coordinates)`` there,
        all detached.

    Raises:
        TypeError: as `checked_start` or `TaskBatch.losses_and_gradients`.
        ValueError: as these; or if a starting point is NaN or infinite, or the losses change the parameters in place.
    """
    start = checked_start(tasks)
    layout, rows = Layout.of(start), ravel(start).detach()
    if not rows.is_meta and not rows.isfinite().all():
        raise ValueError(f"{_name(tasks)}.initial_params: expected numbers, got NaN or infinity.")
    before = rows.clone()
    losses, gradients = tasks.losses_and_gradients(rows, layout, 0)
    if not rows.is_meta and not torch.equal(before, rows):
        raise ValueError(f"{_name(tasks)}.losses: expected to leave `params` as they are, but changed them in place.")
    return layout, rows, losses, gradients


def _name(tasks: TaskBatch) -> str:
    """What messages call it: the problem that was made from functions, or its class."""
    return getattr(tasks, "name", type(tasks).__name__)
