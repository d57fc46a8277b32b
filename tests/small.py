"""Small instances of everything that the kit has, for tests that go over all of them."""

import torch

from l2l_kit.optimizers import NTMBFGS, GroupedRule, LSTMRule
from l2l_kit.problems import CIFAR, MNIST, ConditionedQuadratics, NeuralArt, Quadratics, QuadraticTasks, TaskBatch


def lstm(**arguments):
    return lambda **more: LSTMRule(**{"hidden_size": 5, **arguments, **more})


def memory(**arguments):
    return lambda **more: NTMBFGS(**{"hidden_size": 5, **arguments, **more})


def groups(conv, fc):
    """Two LSTMs that differ in everything; "conv" looks after parameters that do not lie side by side."""
    return lambda seed=1: GroupedRule({"conv": {**conv, "seed": seed}, "fc": {**fc, "seed": seed + 1}})


CONV, FC = {"hidden_size": 5, "preprocessing": "log-sign"}, {"hidden_size": 3, "num_layers": 1, "output_scale": 0.3}

COORDINATEWISE = {
    "one layer": lstm(num_layers=1),
    "three layers, scaled output": lstm(num_layers=3, output_scale=0.1),
    "one cell": lstm(hidden_size=1),
    "scale": lstm(preprocessing={"name": "scale", "factor": 0.3}, forget_bias=1.0),
    "log-sign": lstm(preprocessing="log-sign", forget_bias=(0.0, 3.0)),
    "odd": lstm(preprocessing="log-sign", odd=True),
    "groups": groups(CONV, FC),
}
COUPLED = {
    "averaging": lstm(global_averaging_cells=2),
    "averaging, odd": lstm(global_averaging_cells=2, odd=True),
    "averaging in all cells": lstm(preprocessing="log-sign", output_scale=0.3, global_averaging_cells=5),
    "memory": memory(),
    "memory, many heads": memory(
        global_averaging_cells=0, read_heads=2, write_heads=1, history=3, preprocessing="log-sign"
    ),
    "groups of which one averages": groups({**CONV, "global_averaging_cells": 1}, FC),
}
RULES = {**COORDINATEWISE, **COUPLED}
"""Every kind of learned rule: how it is made."""
NETWORKS = {name: make for name, make in RULES.items() if "groups" not in name}
"""Those that are one network."""

PROBLEMS = {
    "quadratics": Quadratics(dim=4),
    "conditioned quadratics": ConditionedQuadratics(dim=4),
    "mnist": MNIST(hidden=(3,), batch_size=4, source="embedded"),
    "cifar": CIFAR(batch_size=4, source="embedded"),
    "neural art": NeuralArt(style="mosaic", size=16, network="small", source="embedded"),
}
"""Every problem, of a size that takes no time."""


def quadratics(n=3, dim=5, seed=0):
    """In double precision."""
    draws = torch.Generator().manual_seed(seed)
    shapes = {"W": (n, dim, dim), "y": (n, dim), "theta": (n, dim)}
    return QuadraticTasks(
        **{name: torch.randn(shape, generator=draws, dtype=torch.float64) for name, shape in shapes.items()}
    )


class Network(TaskBatch):
    """Tiny tanh networks with a matrix, a vector and a number each, of two kinds, and other data at each step."""

    def __init__(self, n=3, seed=0):
        draws = torch.Generator().manual_seed(seed)

        def gaussian(*shape):
            return torch.randn(*shape, generator=draws, dtype=torch.float64)

        self.data = gaussian(60, n, 4)
        self._start = {"conv.weight": gaussian(n, 2, 4), "fc.bias": gaussian(n, 2), "conv.offset": gaussian(n)}

    @property
    def initial_params(self):
        return self._start

    def losses(self, params, step):
        hidden = torch.einsum("noi,ni->no", params["conv.weight"], self.data[step]) + params["fc.bias"]
        return (hidden.tanh().sum(dim=1) + params["conv.offset"] - 1).square()
