"""Everything stays on the device that was asked for: shown on "meta", which every machine has.

A tensor that is made on the CPU by mistake meets one of the device and raises, as it would on a GPU.
"""

from dataclasses import replace

import pytest
import torch

from l2l_kit.optimizers import GroupedRule, LSTMRule, baseline
from l2l_kit.problems import CIFAR, MNIST, NeuralArt, Quadratics
from l2l_kit.randomness import generator
from l2l_kit.training import AutogradEstimator, FirstOrderEstimator, SecondOrderEstimator, trajectory
from l2l_kit.training.meta_gradient import GradientEstimator

META = torch.device("meta")
LSTM = {"hidden_size": 3, "preprocessing": "log-sign", "output_scale": 0.1}
PROBLEMS = {
    "quadratics": Quadratics(3),
    "mnist": MNIST(hidden=(3,), batch_size=4, source="embedded"),
    "cifar": CIFAR(batch_size=4, source="embedded"),
    "neural art": NeuralArt(style="mosaic", size=16, network="small", source="embedded"),
}


def rules(problem):
    if problem == "cifar":
        return GroupedRule({"conv": LSTM, "fc": LSTM}).to(META)
    return LSTMRule(**LSTM).to(META)


def tasks(problem, n=2):
    return PROBLEMS[problem].sample(n, generator(0, "devices"), META)


@pytest.fixture
def unchecked(monkeypatch):
    """On "meta" there are no numbers of which one could ask whether they are finite."""
    monkeypatch.setattr(GradientEstimator, "_check", lambda *_: None)


@pytest.mark.parametrize("problem", PROBLEMS)
class TestOnDevice:
    @pytest.mark.parametrize("learned", [True, False])
    def test_a_run(self, problem, learned):
        rule = rules(problem) if learned else baseline("adam", 0.1)
        for point in trajectory(rule, tasks(problem), 3):
            assert {tensor.device for tensor in point} == {META}

    @pytest.mark.parametrize("sample", [None, 2])
    @pytest.mark.parametrize("tape_bytes", [10**6, 10**9])
    def test_meta_training_by_replay(self, problem, sample, tape_bytes, unchecked):
        unroller = FirstOrderEstimator(rules(problem), tape_bytes, sample=sample)
        unroller.reset(tasks(problem), generator(0, "sample"))
        for _ in range(2):
            window = unroller.unroll(3)
            assert {tensor.device for tensor in (window.losses, *window.meta_gradient.values())} == {META}

    @pytest.mark.parametrize("tape_bytes", [10**6, 10**9])
    def test_meta_training_by_exact_replay(self, problem, tape_bytes, unchecked):
        unroller = SecondOrderEstimator(rules(problem), tape_bytes)
        unroller.reset(tasks(problem))
        for _ in range(2):
            window = unroller.unroll(3)
            assert {tensor.device for tensor in (window.losses, *window.meta_gradient.values())} == {META}

    def test_meta_training_by_autograd(self, problem, unchecked):
        unroller = AutogradEstimator(rules(problem), second_order=problem in ("quadratics", "cifar"))
        unroller.reset(tasks(problem))
        window = unroller.unroll(2)
        assert {tensor.device for tensor in (window.losses, *window.meta_gradient.values())} == {META}


@pytest.mark.parametrize("problem", ["mnist", "cifar"])
def test_images_held_out(problem):
    networks = tasks(problem)
    assert {tensor.device for tensor in networks.test(networks.initial_params)} == {META}


def test_a_tensor_left_on_the_cpu_is_noticed():
    """Or these tests could not fail."""
    functions = tasks("quadratics")
    elsewhere = replace(functions, y=torch.zeros(functions.y.shape))
    with pytest.raises(RuntimeError, match="device"):
        next(trajectory(baseline("adam", 0.1), elsewhere, 1))
