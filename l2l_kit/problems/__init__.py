"""What is optimized: one file per family of problems."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from l2l_kit.errors import UnknownNameError
from l2l_kit.problems.base import Problem, TaskBatch
from l2l_kit.problems.cifar import CIFAR, CIFARTasks
from l2l_kit.problems.mnist import MNIST, MNISTTasks
from l2l_kit.problems.neural_art import NeuralArt, NeuralArtTasks
from l2l_kit.problems.quadratics import ConditionedQuadratics, Quadratics, QuadraticTasks

__all__ = [
    "CIFAR",
    "MNIST",
    "CIFARTasks",
    "ConditionedQuadratics",
    "MNISTTasks",
    "NeuralArt",
    "NeuralArtTasks",
    "Problem",
    "QuadraticTasks",
    "Quadratics",
    "TaskBatch",
    "make",
]

_PROBLEMS: dict[str, type[Problem]] = {
    kind.name: kind for kind in (Quadratics, ConditionedQuadratics, MNIST, CIFAR, NeuralArt)
}


def make(config: Mapping[str, Any]) -> Problem:
    """Build a problem from its configuration, ``{"name": "quadratics", "dim": 10}``; inverse of `Problem.config`.

    Raises:
        UnknownNameError: if no problem has that name, or it has no such field; the message offers the nearest one.
    """
    fields = dict(config)
    name = fields.pop("name", None)
    if name not in _PROBLEMS:
        raise UnknownNameError("problem", name, _PROBLEMS)
    kind = _PROBLEMS[name]
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]  # all are dataclasses
    for field in fields:
        if field not in known:
            raise UnknownNameError(f"field of {name}", field, known)
    return kind(**fields)
