"""What is checked of problems, so that a mistake in a class of one's own is named where it is defined or first used.

A class is checked where it is defined, as far as Python lets one, and else where its first instance is made. TaskBatch
are checked once a batch, at the evaluation with which every run begins; none is added.
"""

from __future__ import annotations

import inspect
import json
from abc import ABCMeta
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from l2l_kit.tensors import Layout, Tensors, ravel

if TYPE_CHECKING:
    from l2l_kit.problems.base import TaskBatch

_Made = TypeVar("_Made")


class FrozenDataclass(ABCMeta):
    """The type of classes whose instances say all about themselves in fields that JSON can hold.

    Raises:
        TypeError: where an instance is made, if its class is no frozen dataclass, or JSON cannot hold its `config`.
    """

    def __call__(cls: type[_Made], *args: Any, **kwargs: Any) -> _Made:
        """An instance, once it and its class are checked."""
        _check_dataclass(cls)
        made: _Made = type.__call__(cls, *args, **kwargs)
        _check_config(made)
        return made


def _check_dataclass(cls: type) -> None:
    # What adds nothing to a dataclass need not be decorated again.
    adds = "__init__" in vars(cls) or inspect.get_annotations(cls).keys() - {"name"}
    if not is_dataclass(cls) or (adds and "__dataclass_fields__" not in vars(cls)):
        raise TypeError(f"{cls.__name__}: expected a frozen dataclass. Put @dataclass(frozen=True) above the class.")
    if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]  # every dataclass has them
        raise TypeError(f"{cls.__name__}: expected a frozen dataclass, got another. Write @dataclass(frozen=True).")


def _check_config(made: Any) -> None:
    try:
        json.dumps(made.config())
    except Exception as error:  # objects that cannot even be copied fail in ways of their own
        values = {field.name: getattr(made, field.name) for field in fields(made)}
        wrong = [f"{name} ({type(value).__name__})" for name, value in values.items() if not _is_json(value)]
        raise TypeError(
            f"{type(made).__name__}: expected fields that JSON can hold (numbers, words, booleans, None, and lists and "
            f"dicts of them), since checkpoints and cards record them; got {', '.join(wrong) or error}. Make tensors "
            "and other objects in `sample`."
        ) from error


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, default=asdict)  # which raises TypeError for what is no dataclass
        return True
    except (TypeError, ValueError, RecursionError):
        return False


def is_abstract(cls: type, method: str) -> bool:
    """Whether a class leaves that method to its subclasses."""
    return getattr(getattr(cls, method), "__isabstractmethod__", False)


def check_name(cls: type) -> None:
    """Refuse a class without a `name`.

    Raises:
        TypeError: if it has none.
    """
    name = getattr(cls, "name", None)
    if not (isinstance(name, str) and name):
        raise TypeError(
            f'{cls.__name__}: expected a name, under which files record it, such as name: ClassVar[str] = "mine"; got '
            f"{name!r}."
        )


def check_arguments(cls: type, method: str, *arguments: str) -> None:
    """Refuse a class whose method cannot be called with these, in this order.

    Raises:
        TypeError: if it takes others, or is no method.
    """
    function = inspect.getattr_static(cls, method)
    expected = f"{cls.__name__}.{method}: expected a method ({', '.join(('self', *arguments))})"
    if isinstance(function, FunctionType):
        signature = inspect.signature(function)
        try:
            signature.bind("self", *arguments)
        except TypeError as error:
            raise TypeError(f"{expected}, got {signature}.") from error
    elif not callable(getattr(cls, method)):
        raise TypeError(f"{expected}, got {function!r}.")


def checked_start(tasks: TaskBatch) -> Tensors:
    """Starting points, once they are known to be what they must be.

    Raises:
        TypeError: if they are not a dict of tensors.
        ValueError: if the tensors have no leading axis of one length, or are not of one floating-point type, and on one
            device.
    """
    where, start = f"{type(tasks).__name__}.start", tasks.initial_params
    if callable(start):
        raise TypeError(f"{where}: expected a dict of named tensors, got a method. Put @property above it.")
    if not isinstance(start, Mapping) or not start:
        raise TypeError(f"{where}: expected a dict of named tensors, got {start!r}.")
    for name, tensor in start.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TypeError(f"{where}: expected a dict of named tensors, got {type(tensor).__name__} as {name!r}.")
        if not tensor.is_floating_point():
            raise ValueError(f"{where}: expected floating-point tensors, got {tensor.dtype} as {name!r}.")
    shapes = {name: tuple(tensor.shape) for name, tensor in start.items()}
    if () in shapes.values() or len({shape[0] for shape in shapes.values()}) > 1:
        raise ValueError(
            f"{where}: expected a leading axis of the same length in all tensors, with an entry for each optimizee, "
            f"got the shapes {shapes}."
        )
    for what in ("dtype", "device"):
        if len({getattr(tensor, what) for tensor in start.values()}) > 1:
            found = ", ".join(f"{getattr(tensor, what)} ({name})" for name, tensor in start.items())
            raise ValueError(f"{where}: expected one {what} for all tensors, got {found}.")
    return dict(start)


def first_evaluation(tasks: TaskBatch) -> tuple[Layout, Tensor, Tensor, Tensor]:
    """The losses and gradients at the starting points, with which every run begins.

    Here it is checked what the optimizees give. At later steps nothing is.

    Returns:
        Layout of a row, starting points ``(n, coordinates)``, losses ``(n,)`` and gradients ``(n, coordinates)`` there,
        all detached.

    Raises:
        TypeError: if the losses are no tensor, or as `checked_start`.
        ValueError: if they are of a wrong shape, do not depend on the parameters or change them in place, if a starting
            point is NaN or infinite, or as `checked_start`.
    """
    mine, start = type(tasks).__name__, checked_start(tasks)
    for name, tensor in start.items():
        if not tensor.is_meta and not tensor.isfinite().all():
            raise ValueError(f"{mine}.start: expected numbers, got NaN or infinity in {name!r}.")
    layout, rows = Layout.of(start), ravel(start).detach()
    before = rows.clone()
    try:
        losses, gradients = tasks.losses_and_gradients(rows, layout, 0)
    except Exception as error:
        _explain(tasks, before, layout)
        error.add_note(f"This was raised by the losses of {mine} at the starting points.")
        raise
    _check_losses(mine, losses, before, rows)
    if gradients.shape != rows.shape:
        raise ValueError(
            f"{mine}.losses_and_gradients: expected gradients of shape {tuple(rows.shape)}, got "
            f"{tuple(gradients.shape)}."
        )
    return layout, rows, losses, gradients


def _explain(tasks: TaskBatch, rows: Tensor, layout: Layout) -> None:
    """Evaluate losses that failed once more, and say what was expected of them; nothing if that is not what failed."""
    mine = type(tasks).__name__
    with torch.enable_grad():
        point = rows.clone().requires_grad_()
        params = {name: tensor.clone() for name, tensor in layout.unravel(point).items()}
        given = dict(params)
        try:
            losses = tasks.losses(given, 0)
        except Exception:  # such as a mistake of the caller's: what was raised first says it
            return
        _check_losses(mine, losses, rows, ravel(params))
        if losses.requires_grad:
            (gradients,) = torch.autograd.grad(losses.sum(), point, allow_unused=True)
            if gradients is not None:
                return
    raise ValueError(
        f"{mine}.losses: expected losses that autograd can differentiate by the parameters, got some that do not "
        "depend on them. Compute them from `params` by torch alone: without .detach(), .data, .item() or numpy."
    )


def _check_losses(mine: str, losses: object, before: Tensor, after: Tensor) -> None:
    if not before.is_meta and not torch.equal(before, after):
        raise ValueError(f"{mine}.losses: expected to leave `params` as they are, but changed them in place.")
    if not isinstance(losses, Tensor):
        raise TypeError(f"{mine}.losses: expected a tensor of shape ({len(before)},), got {type(losses).__name__}.")
    if losses.shape != before.shape[:1]:
        raise ValueError(
            f"{mine}.losses: expected shape ({len(before)},), a loss for each optimizee, got {tuple(losses.shape)}. "
            "Sum or average over all axes but the first."
        )
