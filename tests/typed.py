"""What users write, for mypy to check as it checks their code: it is not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import l2l_kit as l2l
from l2l_kit.optimizers import Optimizer
from l2l_kit.problems import ModuleProblem, Problem, TaskBatch, register
from l2l_kit.problems.base import StoredTasks


def init(generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return {"theta": torch.randn(4, generator=generator)}, {"y": torch.randn(4, generator=generator)}


def loss(params: dict[str, Tensor], data: dict[str, Tensor]) -> Tensor:
    return (params["theta"] - data["y"]).square().sum()


def batches(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(4, 2, generator=generator), torch.zeros(4, dtype=torch.long)


@dataclass(frozen=True)
class Rosenbrock(Problem):
    name: ClassVar[str] = "rosenbrock"

    dim: int = 2

    def sample(self, num_tasks: int, generator: torch.Generator, device: torch.device | None = None) -> TaskBatch:
        return RosenbrockTasks({"x": torch.randn(num_tasks, self.dim, generator=generator).to(device)})


@dataclass(frozen=True)
class RosenbrockTasks(StoredTasks):
    def losses(self, params: dict[str, Tensor], step: int) -> Tensor:
        x = params["x"]
        return ((1 - x[:, :-1]) ** 2 + 100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2).sum(dim=1)


class SignSGD:
    def init(self, params: dict[str, Tensor]) -> None:
        return None

    def update(
        self, gradients: dict[str, Tensor], state: None, params: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], None]:
        return {name: -0.01 * gradient.sign() for name, gradient in gradients.items()}, None


register(Rosenbrock)
problem = register(Problem.from_functions("mine", init, loss))
module_problem = register(ModuleProblem("net", lambda: nn.Linear(2, 2), batches, nn.functional.cross_entropy))

model, rule = nn.Linear(3, 2), l2l.load("mnist")
optimizer: torch.optim.Optimizer = l2l.LearnedOptimizer(model.parameters(), "mnist", lr=0.5)
grouped = l2l.LearnedOptimizer(l2l.parameter_groups(model), "cifar")
named = l2l.LearnedOptimizer(list(model.named_parameters()), rule)
schedule = torch.optim.lr_scheduler.StepLR(grouped, 10)


def closure() -> Tensor:
    grouped.zero_grad()
    value: Tensor = model(torch.ones(1, 3)).sum()
    value.backward()  # type: ignore[no-untyped-call]
    return value


grouped.step()
grouped.step(closure)

history = l2l.meta_train(l2l.LSTMRule(), problem, l2l.MetaTraining(epochs=1))
for progress in l2l.MetaTrainer(l2l.LSTMRule(), module_problem).run():
    print(progress.training_loss)
l2l.save(rule, "mine", history)

baselines = l2l.tuned_baselines("quadratics")
entrants: Mapping[str, Optimizer[Any]] = {"LSTM": rule, "sign": SignSGD(), **baselines}
curves = l2l.compare(entrants, problem)
value: float = curves.interval("LSTM", over="Adam").value[-1].item()
figure = l2l.plots.learning_curves(curves, "median")
playground = l2l.widgets.Playground()
