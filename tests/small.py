"""Small instances of everything that the kit has, for tests that go over all of them."""

import io

import torch
from torch import nn
from torch.nn import functional

from l2l_kit import LearnedOptimizer, parameter_groups, problems
from l2l_kit.optimizers import NTMBFGS, GroupedRule, LSTMRule
from l2l_kit.problems import (
    CIFAR,
    MNIST,
    ConditionedQuadratics,
    ModuleProblem,
    NeuralArt,
    Problem,
    Quadratics,
    QuadraticTasks,
    TaskBatch,
)


def same_bits(found, expected):
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def assert_close(found, expected, **tolerance):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


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


def valley(draws):
    return {"x": torch.randn(2, generator=draws), "y": torch.randn((), generator=draws)}, {"a": torch.ones(2)}


def rosenbrock(params, data):
    return (data["a"] - params["x"]).square().sum() + (params["y"] - params["x"].square()).square().sum()


def lines(draws):
    x = torch.randn(5, 1, generator=draws)
    return x, 3 * x - 1


PROBLEMS = {
    "quadratics": Quadratics(dim=4),
    "conditioned": ConditionedQuadratics(dim=4, condition=30.0),
    "mnist": MNIST(hidden=(3,), batch_size=4, source="embedded"),
    "mnist, deep": MNIST([3, 2], "tanh", init_scale=[0.01, 1], batch_size=4, split="test", source="embedded"),
    "cifar": CIFAR([3, 1], batch_size=4, source="embedded"),
    "neural art": NeuralArt("mosaic", 16, "small", "validation", "embedded", tv_weight=0.5),
    "functions": problems.register(Problem.from_functions("valley", valley, rosenbrock)),
    "module": problems.register(ModuleProblem("line", lambda: nn.Linear(1, 1), lines, functional.mse_loss)),
}
"""Every problem, of a size that takes no time and on what needs no download."""


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


ADAM = "torch.optim.Adam"  # the control in laws of LearnedOptimizer


def of_groups(which, groups, **options):
    """An optimizer of parameters that belong to no module."""
    if which == ADAM:
        return torch.optim.Adam(groups, **options)
    return LearnedOptimizer([{"kind": "fc", **group} for group in groups], which, **options)


def of_model(which, model, **options):
    if which == ADAM:
        return torch.optim.Adam(model.parameters(), **{"lr": 0.01, **options})
    return LearnedOptimizer(parameter_groups(model), which, **options)


def through_a_file(what):
    """By torch.save and by torch.load as it is by default, with weights_only."""
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Run:
    """A model and its optimizer."""

    def __init__(self, which, dtype=torch.float32, make=of_model, tied=False, device="cpu", **options):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv1d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 2)).to(dtype)
        if tied:
            self.model.extend([nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)])
            self.model[7].weight = self.model[5].weight
        self.model.to(device)
        self.optimizer = make(which, self.model, **options)
        self.again = lambda: Run(which, dtype, make)

    def loss(self, step):
        like = next(self.model.parameters())
        inputs = torch.randn(6, 1, 3, generator=torch.Generator().manual_seed(step)).to(like)
        return (self.model(inputs) - inputs.sum(dim=2)).square().mean()

    def train(self, *steps):
        """Weights after these steps."""
        for step in steps:
            self.optimizer.zero_grad()
            self.loss(step).backward()
            self.optimizer.step()
        return self.weights

    def load(self, other):
        """Go on from what another one saves."""
        model, optimizer = through_a_file((other.model.state_dict(), other.optimizer.state_dict()))
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        return self

    @property
    def weights(self):
        return [param.detach().clone() for param in self.model.parameters()]

    @property
    def kept(self):
        return [tensor.clone() for tensors in self.optimizer.state.values() for tensor in tensors.values()]

    @property
    def rates(self):
        return [group["lr"] for group in self.optimizer.param_groups]
