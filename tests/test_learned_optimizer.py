"""LearnedOptimizer moves models by its rule, as torch.optim moves them; what it keeps and what it refuses."""

import copy

import pytest
import torch
from small import Run, assert_close, same_bits
from torch import nn

from l2l_kit import LearnedOptimizer, learned_optimizer, zoo
from l2l_kit.errors import WeightsFileError
from l2l_kit.optimizers import NTMBFGS, GroupedRule, LSTMRule

TINY = {"hidden_size": 4, "preprocessing": "log-sign", "output_scale": 0.01}
RULES = {
    "LSTM": LSTMRule(**TINY),
    "two LSTMs": GroupedRule({kind: {**TINY, "seed": seed} for seed, kind in enumerate(("conv", "fc"))}),
    "averaging cells": LSTMRule(**TINY, global_averaging_cells=1),
    "NTM-BFGS": NTMBFGS(**TINY, history=2),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
each_network = pytest.mark.parametrize("rule", [RULES["LSTM"], RULES["NTM-BFGS"]], ids=["LSTM", "NTM-BFGS"])


@each_rule
def test_every_parameter_of_a_model_is_moved_by_the_rule(rule):
    """Written out here, for tied weights too: they move once, by the gradient of all their uses."""
    run, twin = (Run(rule, tied=True) for _ in range(2))
    before, found, states = run.weights, run.train(0, 1, 2), {}
    kinds = {group["kind"]: group["params"] for group in twin.optimizer.param_groups}
    if not isinstance(rule, GroupedRule):
        kinds = {"fc": [param for params in kinds.values() for param in params]}
    for step in range(3):
        twin.optimizer.zero_grad()
        twin.loss(step).backward()
        for kind, params in kinds.items():
            network, sizes = rule.network_for(kind), [param.numel() for param in params]
            gradient = torch.cat([param.grad.flatten() for param in params])
            state = states.get(kind, network.initial_state(len(gradient)))
            update, states[kind] = network.step(gradient, state)
            with torch.no_grad():
                for param, piece in zip(params, update.split(sizes), strict=True):
                    param += piece.view_as(param)
    assert_close(found, twin.weights, rtol=1e-3, atol=1e-5)
    assert not any(torch.equal(one, other) for one, other in zip(found, before, strict=True))


@each_rule
def test_a_state_of_half_precision_takes_half_the_memory_and_goes_on_after_it_was_saved(rule):
    """What the rule remembers is rounded, but not much of what it does."""
    whole, half, again = (Run(rule, state_dtype=dtype) for dtype in (None, torch.bfloat16, torch.bfloat16))
    before, exact, rounded = (
        torch.cat([w.flatten() for w in ws]) for ws in (whole.weights, whole.train(0, 1, 2), half.train(0, 1, 2))
    )
    assert 0 < (exact - rounded).norm() < 0.05 * (exact - before).norm()
    assert sum(t.nbytes for t in whole.kept) == 2 * sum(t.nbytes for t in half.kept)
    again.load(half)
    assert same_bits(again.train(3, 4), half.train(3, 4))
    assert {values.dtype for values in again.kept} == {torch.bfloat16}


def gradient_descent(lr):
    """A rule that is gradient descent: one cell, gates open, nothing kept, θ ← θ − lr ∇f up to O((1e-3 ∇f)²)."""
    rule, open_wide, shut, small = LSTMRule(hidden_size=1, num_layers=1), 40.0, -40.0, 1e-3
    with torch.no_grad():
        rule.layers[0].weight.copy_(torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [small, 0.0]]))
        rule.layers[0].bias.copy_(torch.tensor([open_wide, shut, open_wide, 0.0]))
        rule.output.weight.fill_(-lr / small)
    return rule


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_changing_one_line_is_enough(device):
    """The rule that is gradient descent moves a model as torch.optim.SGD does, by groups with learning rates."""
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).to(device)
    found, losses = [], []
    for make in (
        lambda groups: torch.optim.SGD([{**group, "lr": group.get("lr", 1.0) * 0.1} for group in groups]),
        lambda groups: LearnedOptimizer(groups, gradient_descent(0.1)),
    ):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).to(device)
        optimizer = make([{"params": model[0].parameters(), "lr": 0.3}, {"params": model[2].parameters()}])
        for _ in range(30):
            optimizer.zero_grad()
            losses.append(nn.functional.mse_loss(model(inputs), inputs.sum(dim=1, keepdim=True)))
            losses[-1].backward()
            optimizer.step()
        found.append([param.detach() for param in model.parameters()])
    assert losses[-1] < 0.5 * losses[30]
    assert_close(*found, rtol=1e-3, atol=1e-4)


def vector(steps, optimizer_of, size=40):
    """A parameter after steps by drawn gradients, and its optimizer."""
    param = nn.Parameter(torch.linspace(-1, 1, size).view(-1, 5))
    optimizer, draws = optimizer_of([param]), torch.Generator().manual_seed(0)
    for _ in range(steps):
        param.grad = torch.randn(param.shape, generator=draws)
        given, before = param.grad.clone(), torch.get_rng_state()
        assert optimizer.step() is None
        assert torch.equal(param.grad, given)
        assert torch.equal(torch.get_rng_state(), before), "the global generator is not the kit's to use"
    return param.detach(), optimizer


@pytest.mark.parametrize("chunk", [1, 7, 8, 100])
def test_a_parameter_larger_than_a_chunk_moves_as_in_one(monkeypatch, chunk):
    whole, optimizer = vector(4, lambda params: LearnedOptimizer(params, RULES["LSTM"]))
    monkeypatch.setattr(learned_optimizer, "CHUNK", chunk)
    chunked, other = vector(4, lambda params: LearnedOptimizer(params, RULES["LSTM"]))
    assert_close([chunked], [whole], rtol=1e-6, atol=1e-6)
    for one, two in zip(other.state.values(), optimizer.state.values(), strict=True):
        assert_close(one.values(), two.values(), rtol=1e-5, atol=1e-6)


def test_a_rule_comes_by_itself_by_path_and_by_name_and_is_a_copy(tmp_path, monkeypatch):
    """Training the rule on does not change an optimizer that uses it, nor the other way round."""
    rule = LSTMRule(**TINY)
    path = zoo.save(rule, tmp_path / "mine")
    monkeypatch.setattr(zoo, "PRETRAINED", tmp_path)
    expected, _ = vector(3, lambda params: LearnedOptimizer(params, LSTMRule(**TINY)))

    def spoiled(params):
        optimizer = LearnedOptimizer(params, rule)
        with torch.no_grad():
            rule.output.weight.zero_()
        return optimizer

    for make in (spoiled, *(lambda params, which=which: LearnedOptimizer(params, which) for which in (path, "mine"))):
        assert torch.equal(vector(3, make)[0], expected)
    assert all(weight.requires_grad for weight in rule.parameters())


def test_a_closure_is_called_once_with_gradients_and_its_loss_returned():
    param, calls = nn.Parameter(torch.ones(3)), []
    optimizer = LearnedOptimizer([param], RULES["LSTM"])

    def closure():
        optimizer.zero_grad()
        calls.append(param.square().sum())
        calls[-1].backward()
        return calls[-1]

    with torch.no_grad():
        assert optimizer.step(closure) is calls[0]
    assert len(calls) == 1
    assert (param != 1).all()


class TestStates:
    @pytest.mark.parametrize("other", [{"output_scale": 1.0}, "weights", "Adam"])
    def test_of_another_rule_is_refused(self, other):
        foreign = LSTMRule(**{**TINY, **(other if isinstance(other, dict) else {})})
        if other == "weights":
            foreign.output.bias.data += 1e-6
        make = torch.optim.Adam if other == "Adam" else lambda params: LearnedOptimizer(params, foreign)
        _, optimizer = vector(2, make)
        mine = LearnedOptimizer([nn.Parameter(torch.zeros(8, 5))], RULES["LSTM"])
        with pytest.raises(WeightsFileError, match="belongs to another learned rule"):
            mine.load_state_dict(optimizer.state_dict())
        assert not mine.state
        if other != "Adam":
            with pytest.raises(ValueError, match="another learned rule"):
                LearnedOptimizer(optimizer.param_groups, RULES["LSTM"])

    @each_network
    def test_of_the_first_version_of_the_kit_goes_on(self, rule):
        """It had one axis for all coordinates of a parameter, and another name for what is now the fingerprint."""
        run, again = Run(rule), Run(rule)
        run.train(0, 1, 2)
        state = copy.deepcopy(run.optimizer.state_dict())
        for group in state["param_groups"]:
            group["rule"] = group.pop("fingerprint")
            del group["weight_decay"]
        params = [param for group in run.optimizer.param_groups for param in group["params"]]
        for index, param in enumerate(params):
            for name, values in state["state"][index].items():
                leading = values.shape[: values.dim() - param.dim()]
                state["state"][index][name] = values.reshape(*leading, param.numel())
        again.model.load_state_dict(run.model.state_dict())
        again.optimizer.load_state_dict(state)
        assert same_bits(again.train(3, 4), run.train(3, 4))
        assert again.optimizer.state_dict()["param_groups"] == run.optimizer.state_dict()["param_groups"]

    def test_of_a_parameter_without_storage_has_none_either(self):
        """On "meta", as for planning memory: shapes alone."""
        param = nn.Parameter(torch.empty(3, 2, device="meta"))
        param.grad = torch.empty_like(param)
        optimizer = LearnedOptimizer([param], RULES["LSTM"])
        optimizer.step()
        cell = optimizer.state[param]["cell"]
        assert (cell.device.type, cell.shape) == ("meta", (2, 4, 3, 2))


@pytest.mark.parametrize("wrong", [{"lr": torch.nan}, {"weight_decay": torch.inf}, {"state_dtype": torch.int8}])
def test_an_option_that_makes_no_sense(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be .*, got"):
        LearnedOptimizer([nn.Parameter(torch.ones(3))], RULES["LSTM"], **wrong)


@pytest.mark.parametrize("wrong", ["lr", "weight_decay", "state_dtype", "rule"])
def test_a_group_that_is_refused_is_not_kept(wrong):
    optimizer = LearnedOptimizer([nn.Parameter(torch.ones(3))], RULES["LSTM"])
    with pytest.raises(ValueError, match=wrong):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], wrong: -1.0})
    assert len(optimizer.param_groups) == 1
