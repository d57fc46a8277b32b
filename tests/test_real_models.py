"""LearnedOptimizer on models as people have them; lesson 08 shows this list as a table."""

import copy

import pytest
import torch
from torch import nn

from l2l_kit import parameter_groups
from l2l_kit.learned_optimizer import LearnedOptimizer
from l2l_kit.optimizers import NTMBFGS, GroupedRule, LSTMRule

TINY = {"hidden_size": 4, "preprocessing": "log-sign", "output_scale": 0.01}
RULES = {
    "LSTM": LSTMRule(**TINY),
    "two LSTMs": GroupedRule({kind: {**TINY, "seed": seed} for seed, kind in enumerate(("conv", "fc"))}),
    "averaging cells": LSTMRule(**TINY, global_averaging_cells=1),
    "NTM-BFGS": NTMBFGS(**TINY, history=2),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


class Tied(nn.Module):
    """Reads letters and predicts the next one, with one matrix for both."""

    def __init__(self):
        super().__init__()
        self.letters = nn.Embedding(7, 6)
        self.out = nn.Linear(6, 7, bias=False)
        self.out.weight = self.letters.weight

    def forward(self, inputs):
        return self.out(self.letters(inputs).mean(dim=1))


def convolutional():
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4 * 16, 5), nn.LayerNorm(5), nn.Linear(5, 7))


def transformer():
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(block, nn.Flatten(), nn.Linear(8 * 5, 7))


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


MODELS = {
    "convolutions, linear and norm layers": (convolutional, lambda: draw(8, 3, 6, 6)),
    "a transformer block": (transformer, lambda: draw(8, 5, 8)),
    "tied weights": (Tied, lambda: draw(8, 4).mul(100).long() % 7),
}
each_model = pytest.mark.parametrize(("make", "inputs"), MODELS.values(), ids=MODELS)


def built(make):
    torch.manual_seed(0)
    return make()


def groups(model):
    """As `parameter_groups`, with attention among the linear layers."""
    return parameter_groups(model, lambda _, module: "conv" if isinstance(module, nn.Conv2d) else "fc")


def step(model, inputs, optimizer, *, parts=1, clip=None):
    targets = torch.arange(8) % 7
    optimizer.zero_grad()
    for some in torch.arange(8).chunk(parts):
        loss = nn.functional.cross_entropy(model(inputs[some]).float(), targets[some]) / parts
        loss.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def trained(make, inputs, rule, prepare=lambda model: model, steps=3, **how):
    """Weights after some steps."""
    model = built(make)
    optimizer = LearnedOptimizer(groups(model), rule, **how.pop("options", {}))
    running = prepare(model)
    for _ in range(steps):
        step(running, inputs(), optimizer, **how)
    return weights(model)


def assert_close(found, expected, **tolerance):
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **tolerance)


@each_rule
@each_model
def test_every_parameter_is_moved_by_the_rule(make, inputs, rule):
    """Tied ones once, by the gradient of all their uses."""
    found = trained(make, inputs, rule)
    model = built(make)
    states = {}
    for _ in range(3):
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs()), torch.arange(8) % 7).backward()
        kinds = {}
        for group in groups(model):
            kinds.setdefault(group["kind"], []).extend(group["params"])
        if not isinstance(rule, GroupedRule):
            kinds = {"fc": [param for params in kinds.values() for param in params]}
        for kind, params in kinds.items():
            network = rule.network_for(kind)
            gradient = torch.cat([param.grad.flatten() for param in params])
            states.setdefault(kind, network.initial_state(len(gradient)))
            update, states[kind] = network.step(gradient, states[kind])
            with torch.no_grad():
                for param, piece in zip(params, update.split([param.numel() for param in params]), strict=True):
                    param += piece.view_as(param)
    assert_close(found, weights(model))
    assert all(not torch.equal(tensor, weights(built(make))[name]) for name, tensor in found.items())


@each_rule
def test_frozen_parts_stay(rule):
    def without_convolution(model):
        model[0].requires_grad_(False)
        return model

    torch.manual_seed(0)
    model = without_convolution(convolutional())
    before = weights(model)
    optimizer = LearnedOptimizer(groups(model), rule)
    step(model, draw(8, 3, 6, 6), optimizer)
    moved = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if not name.startswith("0.")}


@each_rule
@each_model
def test_clipped_gradients_are_what_the_rule_sees(make, inputs, rule):
    assert_close(trained(make, inputs, rule, clip=1e9), trained(make, inputs, rule))
    clipped = trained(make, inputs, rule, clip=1e-3)
    assert any(not torch.equal(tensor, clipped[name]) for name, tensor in trained(make, inputs, rule).items())


@each_rule
@pytest.mark.parametrize("name", ["a transformer block", "tied weights"])  # batch normalisation sees the parts alone
def test_accumulated_gradients_are_those_of_the_whole_batch(name, rule):
    assert_close(trained(*MODELS[name], rule, parts=4), trained(*MODELS[name], rule), rtol=1e-3, atol=1e-4)


@each_rule
@each_model
def test_a_compiled_model_is_the_same(make, inputs, rule):
    compiled = trained(make, inputs, rule, prepare=lambda model: torch.compile(model, backend="aot_eager"))
    assert_close(compiled, trained(make, inputs, rule), rtol=1e-3, atol=1e-4)


@each_rule
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_keep_a_full_state(dtype, rule):
    model = built(transformer).to(dtype)
    optimizer = LearnedOptimizer(groups(model), rule)
    before = weights(model)
    step(model, draw(8, 5, 8).to(dtype), optimizer)
    assert all(tensor.dtype == dtype for tensor in weights(model).values())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
    assert {values.dtype for state in optimizer.state.values() for values in state.values()} == {torch.float32}


@each_rule
@each_model
def test_a_state_of_half_precision_takes_half_the_memory(make, inputs, rule):
    sizes, after = {}, {}
    for dtype in (None, torch.bfloat16):
        model = built(make)
        optimizer = LearnedOptimizer(groups(model), rule, state_dtype=dtype)
        before = weights(model)
        for _ in range(3):
            step(model, inputs(), optimizer)
        sizes[dtype] = sum(values.nbytes for state in optimizer.state.values() for values in state.values())
        after[dtype] = {name: tensor - before[name] for name, tensor in weights(model).items()}
    assert sizes[torch.bfloat16] * 2 == sizes[None]
    moved, rounded = (torch.cat([tensor.flatten() for tensor in each.values()]) for each in after.values())
    assert 0 < (moved - rounded).norm() < 0.05 * moved.norm()


@each_rule
def test_a_state_of_half_precision_goes_on_after_it_was_saved(rule):
    def go_on(model, optimizer):
        step(model, draw(8, 5, 8), optimizer)
        return weights(model)

    model = built(transformer)
    optimizer = LearnedOptimizer(groups(model), rule, state_dtype=torch.bfloat16)
    go_on(model, optimizer)
    again = copy.deepcopy(model)
    other = LearnedOptimizer(groups(again), rule, state_dtype=torch.bfloat16)
    other.load_state_dict(optimizer.state_dict())
    assert_close(go_on(again, other), go_on(model, optimizer), rtol=0, atol=0)
    assert {values.dtype for state in other.state.values() for values in state.values()} == {torch.bfloat16}


def test_a_state_needs_fractions():
    with pytest.raises(ValueError, match=r"floating-point type, got torch\.int8"):
        LearnedOptimizer([nn.Parameter(torch.zeros(2))], RULES["LSTM"], state_dtype=torch.int8)
