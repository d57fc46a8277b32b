"""What is optimized: one file per family of problems, and two ways to make one of your own without a class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from l2l_kit.errors import UnknownNameError, check_names, look_up
from l2l_kit.paths import import_file
from l2l_kit.problems.base import Problem, TaskBatch, check_name, check_problem
from l2l_kit.problems.cifar import CIFAR, CIFARTasks
from l2l_kit.problems.classifiers import ClassifierTasks
from l2l_kit.problems.mnist import MNIST, MNISTTasks
from l2l_kit.problems.neural_art import NeuralArt, NeuralArtTasks
from l2l_kit.problems.own import ModuleProblem
from l2l_kit.problems.quadratics import ConditionedQuadratics, Quadratics, QuadraticTasks

__all__ = [
    "CIFAR",
    "MNIST",
    "CIFARTasks",
    "ClassifierTasks",
    "ConditionedQuadratics",
    "MNISTTasks",
    "ModuleProblem",
    "NeuralArt",
    "NeuralArtTasks",
    "Problem",
    "QuadraticTasks",
    "Quadratics",
    "TaskBatch",
    "make",
    "register",
]

_KINDS: tuple[type[Problem], ...] = Quadratics, ConditionedQuadratics, MNIST, CIFAR, NeuralArt
_KNOWN: dict[str, Problem | type[Problem]] = {kind.name: kind for kind in _KINDS}
_Registered = TypeVar("_Registered", bound=Problem | type[Problem])


def register(problem: _Registered) -> _Registered:
    """Make a problem of one's own, or (as a decorator) a class of them, known to `make` by its name.

    Raises:
        TypeError: as `check_problem`.
        ValueError: if the name is one of the kit's.
    """
    is_class = isinstance(problem, type) and issubclass(problem, Problem)
    (check_name if is_class else check_problem)(problem)
    if problem.name in {kind.name for kind in _KINDS}:
        raise ValueError(f"{problem.name!r} is a problem of the kit. Give yours another name.")
    _KNOWN[problem.name] = problem
    return problem


def make(config: Mapping[str, object]) -> Problem:
    """Build a problem from its configuration, ``{"name": "quadratics", "dim": 10}``; inverse of `Problem.config`.

    In recipes, sweeps and the command line the name may begin with a file that is to be imported and registers the
    problem, ``{"name": "path/to/file.py:mine"}``.

    Raises:
        ValueError: if there is no such problem or field (`UnknownNameError`) or file, or another module has its name.
    """
    fields = dict(config)
    path, in_file, name = str(fields.pop("name", None)).rpartition(".py:")
    if in_file:
        import_file(f"{path}.py")
        if name not in _KNOWN:
            raise UnknownNameError(f"problem registered in {path}.py", name, _KNOWN.keys() - {it.name for it in _KINDS})
    elif name.endswith(".py"):
        raise ValueError(f"{name}: which problem of this file? Add the name under which it is registered, {name}:name.")
    found = look_up("problem", name, _KNOWN)
    check_names(
        f"field of {name}", fields, found.config() if isinstance(found, Problem) else found.__dataclass_fields__
    )
    if isinstance(found, Problem):
        return replace(found, **fields) if fields else found
    return found(**fields)
