"""Everything stays on the device that was asked for: shown on "meta", which every machine has.

A tensor that is made on the CPU by mistake meets one of the device and raises, as it would on a GPU.
"""

import pytest
import torch
from small import PROBLEMS

from l2l_kit.optimizers import GroupedRule, LSTMRule, baseline
from l2l_kit.problems import ClassifierTasks
from l2l_kit.randomness import generator
from l2l_kit.training import AutogradEstimator, FirstOrderEstimator, SecondOrderEstimator, trajectory
from l2l_kit.training.meta_gradient import GradientEstimator

META = torch.device("meta")
LSTM = {"hidden_size": 3, "preprocessing": "log-sign", "output_scale": 0.1}
ESTIMATORS = {
    "first order": FirstOrderEstimator,
    "in chunks": lambda rule: FirstOrderEstimator(rule, 10**6),
    "sampled": lambda rule: FirstOrderEstimator(rule, sample=2),
    "second order": SecondOrderEstimator,
    "second order, no graph kept": lambda rule: SecondOrderEstimator(rule, 1),
    "autograd": lambda rule: AutogradEstimator(rule, second_order=True),
}


def rule_for(problem):
    return (GroupedRule({"conv": LSTM, "fc": LSTM}) if problem == "cifar" else LSTMRule(**LSTM)).to(META)


def tasks_of(problem):
    return PROBLEMS[problem].sample(2, generator(0, "devices"), META)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_run(problem):
    tasks = tasks_of(problem)
    for rule in (rule_for(problem), baseline("adam", 0.1)):
        assert {tensor.device for point in trajectory(rule, tasks, 3) for tensor in point} == {META}
    if isinstance(tasks, ClassifierTasks):
        assert {tensor.device for tensor in tasks.test(tasks.initial_params)} == {META}


@pytest.mark.parametrize("kind", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_meta_gradients(problem, kind, monkeypatch):
    # On "meta" there are no numbers of which one could ask whether they are finite.
    monkeypatch.setattr(GradientEstimator, "_check", lambda *_: None)
    estimator = kind(rule_for(problem))
    estimator.reset(tasks_of(problem), generator(0, "sample"))
    for _ in range(2):
        window = estimator.unroll(3)
        assert {tensor.device for tensor in (window.losses, *window.meta_gradient.values())} == {META}
