"""What is checked of problems, so that a mistake in one of your own is named where it is defined or first used."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, get_args

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


def check_number(problem: Problem, field: str, kind: type[int] | type[float], low: float) -> None:
    """Refuse a field that is no finite number of at least `low`, by a ValueError."""
    value = getattr(problem, field)
    if not isinstance(value, kind | int) or not low <= value < math.inf:
        whole = "whole " if kind is int else ""
        raise ValueError(f"{type(problem).__name__}: {field} must be a {whole}number of at least {low}, got {value!r}.")


def check_choice(problem: Problem, field: str, choices: object) -> None:
    """Refuse a field that is none of a Literal's words, by an UnknownNameError."""
    if (value := getattr(problem, field)) not in get_args(choices):
        raise UnknownNameError(field, value, get_args(choices))


def checked_start(tasks: TaskBatch) -> Tensors:
    """Starting points, or a ValueError if they are not what `TaskBatch.initial_params` must be."""
    where, start = f"{_name(tasks)}.initial_params", tasks.initial_params
    if callable(start):
        raise ValueError(f"{where}: expected a dict of named tensors, got a method. Put @property above it.")
    if not isinstance(start, dict) or not start or not all(isinstance(each, Tensor) for each in start.values()):
        raise ValueError(f"{where}: expected a dict of named tensors, got {start!r}.")
    kinds = {(tensor.dtype, tensor.device, tensor.shape[:1]) for tensor in start.values()}
    if len(kinds) > 1 or not all(tensor.dim() and tensor.is_floating_point() for tensor in start.values()):
        found = ", ".join(f"{name!r} {tuple(each.shape)} {each.dtype} {each.device}" for name, each in start.items())
        raise ValueError(
            f"{where}: expected tensors of one floating-point type, on one device, with a leading axis of one length "
            f"that counts the tasks; got {found}."
        )
    return start


def checked_gradients(tasks: TaskBatch, point: Tensor, losses: Tensor) -> Tensor:
    """The gradient of the summed losses at a point, or a ValueError if they are not what `TaskBatch.losses` must be."""
    where, shape = f"{_name(tasks)}.losses: expected", (len(point),)
    if (found := tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__) != shape:
        wanted = f"a tensor of shape {shape}, a loss for each task"
        raise ValueError(f"{where} {wanted}, got {found}. Sum or average over all other axes.")
    if losses.requires_grad:
        (gradients,) = torch.autograd.grad(losses.sum(), point, allow_unused=True)
        if gradients is not None:
            return gradients
    raise ValueError(
        f"{where} losses that autograd can differentiate by the parameters, got some that do not depend on them. "
        "Compute them from `params` by torch alone: no .detach(), .data, .item() or numpy."
    )


def first_evaluation(tasks: TaskBatch) -> tuple[Layout, Tensor, Tensor, Tensor]:
    """Layout, starting points ``(n, coordinates)``, losses ``(n,)`` and gradients there, with which every run begins.

    Raises a ValueError as the functions above, or if a start is not finite, or the losses change it in place.
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
