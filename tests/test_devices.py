"""Everything stays on the device that was asked for, and gives the numbers that it gives on the CPU.

Where there is no GPU, two devices stand in for it: "meta", whose tensors are shapes alone, and that of
second_device.py. A tensor that is made on the CPU by mistake meets one of the device and raises, as it would on a GPU.
"""

import sys
from dataclasses import replace

import pytest
import torch
from second_device import NAME
from small import NETWORKS, PROBLEMS, Run
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from l2l_kit import zoo
from l2l_kit.evaluation import lbfgs, metrics_on_test_set, proposed_steps, recorded_gradients, tune
from l2l_kit.evaluation.analysis import meta_gradient_bias
from l2l_kit.evaluation.comparison import compare
from l2l_kit.making.imitation import Imitation, imitate
from l2l_kit.making.recipes import Recipe
from l2l_kit.making.runs import record_tuning
from l2l_kit.making.train import train_recipe
from l2l_kit.optimizers import GroupedBaselines, GroupedRule, LSTMRule, baseline
from l2l_kit.problems import ClassifierTasks, Quadratics
from l2l_kit.randomness import generator
from l2l_kit.training import (
    AutogradEstimator,
    FirstOrderEstimator,
    MetaTrainer,
    MetaTraining,
    SecondOrderEstimator,
    trajectory,
)
from l2l_kit.training.meta_gradient import GradientEstimator
from l2l_kit.widgets import Trainer

GPU = ["cuda"] if torch.cuda.is_available() else []
on_each_device = pytest.mark.parametrize("device", [NAME, *GPU])
also_in_shapes = pytest.mark.parametrize("device", ["meta", NAME, *GPU])
LSTM = {"hidden_size": 3, "preprocessing": "log-sign", "output_scale": 0.1}
TRAINING = MetaTraining(horizon=4, unroll=3, epochs=2, episodes_per_epoch=2, batch_size=3, validation_tasks=5)
IMITATION = Imitation(networks=3, horizon=30, unroll=3, passes=3)
KINDS = ["sgd", "nag", "rmsprop", "adam", "adamw", "muon", "schedule-free"]
ESTIMATORS = {
    "first order": FirstOrderEstimator,
    "in chunks": lambda rule: FirstOrderEstimator(rule, 3 * 10**6),
    "sampled": lambda rule: FirstOrderEstimator(rule, sample=2),
    "second order": SecondOrderEstimator,
    "second order, no graph kept": lambda rule: SecondOrderEstimator(rule, 1),
    "autograd": lambda rule: AutogradEstimator(rule, second_order=True),
}


def rule_for(problem):
    return GroupedRule({"conv": LSTM, "fc": LSTM}) if problem == "cifar" else LSTMRule(**LSTM)


def tasks_of(problem, device):
    return PROBLEMS[problem].sample(2, generator(0, "devices"), torch.device(device))


def assert_there(device, tensors, expected):
    """That tensors are on a device, and have the numbers that were found on the CPU, but for rounding that grew."""
    assert {tensor.device.type for tensor in tensors} == {device}
    for tensor, same in zip(tensors, expected, strict=True) if device != "meta" else ():
        assert (tensor.cpu() - same).norm() <= 0.03 * same.norm() + 1e-5


def points(optimizer, problem, device):
    tasks = tasks_of(problem, device)
    found = [tensor for point in trajectory(optimizer, tasks, 3) for tensor in point]
    return found + list(tasks.test(tasks.initial_params) if isinstance(tasks, ClassifierTasks) else ())


@also_in_shapes
@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_run_on_every_problem(problem, device):
    rule = rule_for(problem)
    on_cpu = points(rule, problem, "cpu")
    assert_there(device, points(rule.to(device), problem, device), on_cpu)


class Operations(TorchDispatchMode):
    """Counts, while it is entered, what a GPU would be asked to do."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("problem", sorted({*PROBLEMS} - {"module"}))  # its minibatches are drawn one by one
def test_a_batch_takes_as_many_operations_whatever_its_size(problem):
    """There is no loop over networks or functions."""
    found = []
    for size in (2, 7):
        tasks = PROBLEMS[problem].sample(size, generator(0, "devices"), torch.device("meta"))
        with Operations() as operations:
            list(trajectory(rule_for(problem).to("meta"), tasks, 2))
        found.append(operations.number)
    assert found[0] == found[1] > 0


@also_in_shapes
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_every_baseline(kind, device):
    rule = baseline(kind, 0.01)
    assert_there(device, points(rule, "mnist", device), points(rule, "mnist", "cpu"))


@also_in_shapes
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_run_of_every_learned_rule(kind, device):
    rule = NETWORKS[kind]()
    on_cpu = points(rule, "conditioned", "cpu")
    assert_there(device, points(rule.to(device), "conditioned", device), on_cpu)


def meta_gradient(kind, rule, problem, device):
    estimator = ESTIMATORS[kind](rule.to(device))
    estimator.reset(tasks_of(problem, device), generator(0, "sample"))
    windows = [estimator.unroll(3) for _ in range(2)]
    return [tensor for window in windows for tensor in (window.losses, *window.meta_gradient.values())]


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("problem", ["quadratics", "cifar"])
def test_meta_gradients_in_shapes(problem, kind, monkeypatch):
    # On "meta" there are no numbers of which one could ask whether they are finite.
    monkeypatch.setattr(GradientEstimator, "_check", lambda *_: None)
    assert_there("meta", meta_gradient(kind, rule_for(problem), problem, "meta"), None)


@on_each_device
@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("problem", ["quadratics", "cifar"])
def test_meta_gradients(problem, kind, device):
    on_cpu = meta_gradient(kind, rule_for(problem), problem, "cpu")
    assert_there(device, meta_gradient(kind, rule_for(problem), problem, device), on_cpu)


@on_each_device
@pytest.mark.parametrize("kind", ["averaging", "memory"])
def test_meta_gradients_of_rules_whose_coordinates_are_coupled(kind, device):
    on_cpu = meta_gradient("first order", NETWORKS[kind](), "conditioned", "cpu")
    assert_there(device, meta_gradient("first order", NETWORKS[kind](), "conditioned", device), on_cpu)


@on_each_device
@pytest.mark.parametrize("second_derivatives", [False, True])
def test_meta_training(device, second_derivatives, tmp_path):
    """A run resumes from a checkpoint, whichever device wrote it."""

    def trainer(where, path):
        settings = replace(TRAINING, second_derivatives=second_derivatives)
        return MetaTrainer(LSTMRule(3), Quadratics(2), settings, checkpoint=path, device=where)

    def finish(trainer):
        for _ in trainer.run():
            pass
        return trainer.rule.parameters()

    on_cpu = list(finish(trainer("cpu", tmp_path / "cpu")))
    for first, second in ((device, device), ("cpu", device), (device, "cpu")):
        path = tmp_path / f"{first} {second}"
        half = trainer(first, path).run()
        for event in half:
            if event.validation_losses is not None and event.epoch == 1:
                break
        assert_there(second, list(finish(trainer(second, path))), on_cpu)


@on_each_device
@pytest.mark.parametrize("grouped", [False, True])
def test_imitation(device, grouped):
    def imitated(where):
        teacher = baseline("adam", 0.05)
        rule = GroupedRule({"theta": LSTM}) if grouped else LSTMRule(**LSTM)
        teacher = GroupedBaselines({"theta": teacher}) if grouped else teacher
        taught = list(imitate(rule, teacher, Quadratics(3), IMITATION, device=where))
        return [taught[-1].losses, *rule.parameters()]

    assert_there(device, imitated(device), imitated("cpu"))


@on_each_device
def test_comparison_and_analysis(device, tmp_path):
    """What comes of them is on the CPU, wherever it was computed, and the caller's rules stay where they are."""
    rules = {"LSTM": LSTMRule(**LSTM), "Adam": baseline("adam", 0.1)}
    digits, functions = PROBLEMS["mnist"], Quadratics(2)
    draws = {"num_tasks": 3, "seed": 1}

    def found(where):
        yield from compare(rules, digits, steps=3, **draws, device=where).losses.values()
        yield from recorded_gradients(rules["LSTM"], digits, steps=2, device=where).values()
        rates = {"steps": 3, "learning_rates": [0.1, 0.2]}
        tables = [
            metrics_on_test_set(rules, digits, at=[0, 2], **draws, device=where),
            proposed_steps(rules, digits, steps=2, **draws, device=where),
            tune("adam", digits, **rates, **draws, device=where).table,
            record_tuning(functions, tmp_path / where, steps=(2,), rates=1, **draws, device=where)[0][0].table,
            meta_gradient_bias(rules["LSTM"], functions, unrolls=[2], horizon=4, num_tasks=3, device=where),
        ]
        for table in tables:
            yield torch.tensor(table.select_dtypes("number").to_numpy())

    assert_there("cpu", list(found(device)), list(found("cpu")))
    assert_there("cpu", list(rules["LSTM"].parameters()), list(LSTMRule(**LSTM).parameters()))


@on_each_device
def test_lbfgs(device):
    on_cpu, there = (
        [tensor for point in lbfgs(tasks_of("quadratics", where).select(0), 5) for tensor in point]
        for where in ("cpu", device)
    )
    assert_there(device, there, on_cpu)


@on_each_device
@pytest.mark.parametrize("which", ["mnist", "quadratics-averaging", "cifar"])
def test_learned_optimizer(device, which):
    """A run on a device, resumed from its own checkpoint, which is loaded onto the CPU first."""
    on_cpu, run = Run(which).train(1, 2, 3), Run(which, device=device)
    run.train(1, 2)
    saved = tree_map_only(torch.Tensor, torch.Tensor.cpu, (run.model.state_dict(), run.optimizer.state_dict()))
    goes_on = Run(which, device=device)
    goes_on.model.load_state_dict(saved[0])
    goes_on.optimizer.load_state_dict(saved[1])
    assert_there(device, goes_on.train(3), on_cpu)
    assert {tensor.device.type for tensor in goes_on.kept} == {device}


@on_each_device
def test_a_recipe_with_an_imitation(device, tmp_path):
    teacher = {"name": "adam", "lr": 0.1}
    recipe = Recipe("tiny", {"name": "quadratics", "dim": 2}, LSTM, TRAINING, teacher=teacher, imitation=IMITATION)
    on_cpu, there = (zoo.load(train_recipe(recipe, tmp_path / where, where)) for where in ("cpu", device))
    assert_there("cpu", list(there.parameters()), list(on_cpu.parameters()))
    assert zoo.card(tmp_path / device / "pretrained" / "tiny.safetensors")["trained"]["device"].startswith(device)


@on_each_device
def test_a_widget_uses_the_best_device(device, monkeypatch):
    """Its optimizer may be elsewhere than what it is compared with."""
    for name, module in list(sys.modules.items()):
        if name.startswith("l2l_kit") and hasattr(module, "pick_device"):
            monkeypatch.setattr(module, "pick_device", lambda given=None: torch.device(given or device))
    trainer = Trainer(Quadratics(2), TRAINING, optimizer=LSTM, baselines={"Adam": baseline("adam", 0.1)})
    trainer.run()
    assert {weight.device.type for weight in trainer.trained.parameters()} == {device}
    assert "Trained." in trainer.view.text


@also_in_shapes
def test_a_tensor_left_on_the_cpu_is_noticed(device):
    """Or these tests could not fail."""
    functions = tasks_of("quadratics", device)
    elsewhere = replace(functions, y=torch.zeros(functions.y.shape))
    with pytest.raises(RuntimeError, match="device"):
        next(trajectory(baseline("adam", 0.1), elsewhere, 1))
