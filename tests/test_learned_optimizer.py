"""LearnedOptimizer keeps the contract of torch.optim: what works with Adam works with it."""

import copy

import pytest
import torch
from torch import nn

from l2l_kit import learned_optimizer, zoo
from l2l_kit.errors import UnknownNameError, WeightsFileError
from l2l_kit.learned_optimizer import LearnedOptimizer
from l2l_kit.optimizers import NTMBFGS, LSTMRule

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def make_rule(**arguments):
    """A rule with a memory, so that states matter."""
    return LSTMRule(**{"hidden_size": 4, "preprocessing": "log-sign", "output_scale": 0.1, **arguments})


def gradient_descent(lr):
    """A rule that is gradient descent: one cell, gates open, nothing kept, θ ← θ − lr ∇f up to O((1e-3 ∇f)²)."""
    rule, open_wide, shut, small = LSTMRule(hidden_size=1, num_layers=1), 40.0, -40.0, 1e-3
    with torch.no_grad():
        rule.layers[0].weight.copy_(torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [small, 0.0]]))
        rule.layers[0].bias.copy_(torch.tensor([open_wide, shut, open_wide, 0.0]))
        rule.output.weight.fill_(-lr / small)
        rule.output.bias.zero_()
    return rule


def make_model(dtype=torch.float32, device="cpu"):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(device, dtype)


def data(step, dtype=torch.float32, device="cpu"):
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(step)).to(device, dtype)
    return inputs, torch.stack([inputs.sum(dim=1), inputs[:, 0] * inputs[:, 1]], dim=1)


def loss_of(model, step):
    parameter = next(model.parameters())
    inputs, targets = data(step, parameter.dtype, parameter.device)
    return nn.functional.mse_loss(model(inputs), targets)


def train(model, optimizer, steps, scheduler=None):
    """The loop that one writes for Adam."""
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def copies(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_same_bits(model, expected):
    for parameter, tensor in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter.detach(), tensor)


class TestInALoop:
    """The rule that is gradient descent must move a model exactly as torch.optim.SGD does."""

    @pytest.mark.parametrize("device", DEVICES)
    def test_changing_one_line_is_enough(self, device):
        model, twin = make_model(device=device), make_model(device=device)
        train(twin, torch.optim.SGD(twin.parameters(), lr=0.1), range(30))
        train(model, LearnedOptimizer(model.parameters(), gradient_descent(0.1)), range(30))
        assert loss_of(model, 99) < 0.5 * loss_of(make_model(device=device), 99)
        for parameter, expected in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(parameter, expected, rtol=1e-3, atol=1e-4)

    def test_parameter_groups_have_learning_rates_of_their_own(self):
        def groups(model, factor):
            return [
                {"params": model[0].parameters(), "lr": 0.3 * factor},
                {"params": model[2].parameters()},
            ]

        model, twin = make_model(), make_model()
        train(twin, torch.optim.SGD(groups(twin, 0.1), lr=0.1), range(10))
        train(model, LearnedOptimizer(groups(model, 1), gradient_descent(0.1)), range(10))
        for parameter, expected in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(parameter, expected, rtol=1e-3, atol=1e-4)

    def test_a_closure_is_called_once_with_gradients_and_its_loss_returned(self):
        model, twin, calls = make_model(), make_model(), []
        optimizer = LearnedOptimizer(model.parameters(), make_rule())

        def closure():
            optimizer.zero_grad()
            calls.append(loss_of(model, 0))
            calls[-1].backward()
            return calls[-1]

        with torch.no_grad():
            returned = optimizer.step(closure)
        assert calls == [returned]
        train(twin, LearnedOptimizer(twin.parameters(), make_rule()), [0])
        assert_same_bits(model, copies(twin))

    def test_step_without_closure_returns_none(self):
        model = make_model()
        assert LearnedOptimizer(model.parameters(), make_rule()).step() is None

    def test_parameters_without_a_gradient_are_left_alone(self):
        model = make_model()
        model[0].requires_grad_(False)
        before = copies(model)
        optimizer = LearnedOptimizer(model.parameters(), make_rule())
        train(model, optimizer, range(3))
        moved = [not torch.equal(parameter, old) for parameter, old in zip(model.parameters(), before, strict=True)]
        assert moved == [False, False, True, True]
        assert len(optimizer.state) == 2

    def test_gradients_are_left_alone(self):
        model = make_model()
        optimizer = LearnedOptimizer(model.parameters(), make_rule())
        loss_of(model, 0).backward()
        before = [parameter.grad.clone() for parameter in model.parameters()]
        optimizer.step()
        assert all(torch.equal(parameter.grad, old) for parameter, old in zip(model.parameters(), before, strict=True))

    def test_draws_nothing_from_the_global_generator(self):
        model = make_model()
        before = torch.get_rng_state()
        train(model, LearnedOptimizer(model.parameters(), make_rule()), range(2))
        assert torch.equal(torch.get_rng_state(), before)


class TestTheRule:
    def test_moves_a_parameter_as_the_batch_rule_does(self):
        """The same gradients through `LSTMRule.update`, for parameters of any shape."""
        rule, draws = make_rule(), torch.Generator().manual_seed(0)
        shapes = {"matrix": (3, 4), "vector": (5,), "number": (), "empty": (0, 3), "images": (2, 1, 2, 2)}
        params = {name: nn.Parameter(torch.randn(shape, generator=draws)) for name, shape in shapes.items()}
        expected = {name: param.detach().clone()[None] for name, param in params.items()}
        optimizer, state = LearnedOptimizer(params.values(), rule), rule.init(expected)
        for _ in range(5):
            gradients = {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}
            for name, param in params.items():
                param.grad = gradients[name].clone()
            optimizer.step()
            updates, state = rule.update({name: gradient[None] for name, gradient in gradients.items()}, state)
            for name, param in params.items():
                expected[name] = expected[name] + updates[name]
                torch.testing.assert_close(param.detach(), expected[name][0], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("chunk", [1, 7, 8, 100])
    def test_a_parameter_larger_than_a_chunk_moves_as_in_one(self, monkeypatch, chunk):
        """40 coordinates: 40, 6, 5 chunks and 1."""

        def run():
            params = [nn.Parameter(torch.linspace(-1, 1, 40).view(8, 5))]
            optimizer = LearnedOptimizer(params, make_rule())
            for step in range(4):
                params[0].grad = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
                optimizer.step()
            return params[0].detach(), optimizer.state[params[0]]

        whole, state = run()
        monkeypatch.setattr(learned_optimizer, "CHUNK", chunk)
        chunked, chunked_state = run()
        torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=1e-6)
        for name in ("hidden", "cell"):
            torch.testing.assert_close(chunked_state[name], state[name], rtol=1e-5, atol=1e-6)

    def test_is_a_copy(self):
        """Training the rule on does not change an optimizer that uses it, nor the other way round."""
        rule, model, twin = make_rule(), make_model(), make_model()
        optimizer = LearnedOptimizer(model.parameters(), rule)
        before = {name: weight.clone() for name, weight in rule.state_dict().items()}
        train(model, optimizer, range(3))
        assert all(torch.equal(weight, before[name]) for name, weight in rule.state_dict().items())
        assert all(weight.requires_grad for weight in rule.parameters())
        with torch.no_grad():
            rule.output.weight.zero_()
        train(model, optimizer, range(3, 6))
        train(twin, LearnedOptimizer(twin.parameters(), make_rule()), range(6))
        assert_same_bits(model, copies(twin))

    def test_comes_by_path_and_by_name(self, tmp_path, monkeypatch):
        path = zoo.save(make_rule(), tmp_path / "mine")
        monkeypatch.setattr(zoo, "PRETRAINED", tmp_path)
        results = []
        for rule in (make_rule(), path, str(path), "mine"):
            model = make_model()
            train(model, LearnedOptimizer(model.parameters(), rule), range(3))
            results.append(copies(model))
        for model in results[1:]:
            assert all(torch.equal(one, other) for one, other in zip(model, results[0], strict=True))

    def test_an_unknown_name_gives_the_near_match(self, tmp_path, monkeypatch):
        zoo.save(make_rule(), tmp_path / "quadratics")
        monkeypatch.setattr(zoo, "PRETRAINED", tmp_path)
        with pytest.raises(UnknownNameError, match="Did you mean 'quadratics'"):
            LearnedOptimizer(make_model().parameters(), "quadratic")

    def test_a_file_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(WeightsFileError, match=r"none\.safetensors: there is no such file"):
            LearnedOptimizer(make_model().parameters(), tmp_path / "none.safetensors")


class TestState:
    @pytest.mark.parametrize("device", DEVICES)
    def test_a_saved_state_continues_bit_for_bit(self, tmp_path, device):
        model = make_model(device=device)
        optimizer = LearnedOptimizer(model.parameters(), make_rule(), lr=0.5)
        train(model, optimizer, range(3))
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "saved.pt")
        train(model, optimizer, range(3, 6))

        saved, again = torch.load(tmp_path / "saved.pt"), make_model(device=device)
        again.load_state_dict(saved["model"])
        resumed = LearnedOptimizer(again.parameters(), make_rule())
        resumed.load_state_dict(saved["optimizer"])
        assert resumed.param_groups[0]["lr"] == 0.5
        train(again, resumed, range(3, 6))
        assert_same_bits(again, copies(model))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_is_kept_in_the_precision_of_the_rule(self, dtype):
        model = make_model(dtype)
        optimizer = LearnedOptimizer(model.parameters(), make_rule())
        train(model, optimizer, range(2))
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for parameter in model.parameters():
            assert parameter.dtype == dtype
            assert parameter.isfinite().all()
            for tensor in optimizer.state[parameter].values():
                assert tensor.dtype == torch.float32
                assert tensor.shape == (2, 4, *parameter.shape)

    def test_a_loaded_state_is_not_shared_with_where_it_came_from(self):
        model, twin = make_model(), make_model()
        optimizer, other = (LearnedOptimizer(each.parameters(), make_rule()) for each in (model, twin))
        train(model, optimizer, range(3))
        twin.load_state_dict(model.state_dict())
        other.load_state_dict(optimizer.state_dict())
        train(model, optimizer, range(3, 6))
        train(twin, other, range(3, 6))
        assert_same_bits(twin, copies(model))

    def test_parameters_added_later_begin_afresh(self):
        model = make_model()
        optimizer = LearnedOptimizer(model[2].parameters(), make_rule())
        train(model, optimizer, range(3))
        optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.5})
        before = copies(model)
        train(model, optimizer, range(3, 6))
        assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5]
        assert all(not torch.equal(now, old) for now, old in zip(copies(model), before, strict=True))

        again = make_model()
        again.load_state_dict(model.state_dict())
        groups = [{"params": again[2].parameters()}, {"params": again[0].parameters()}]
        resumed = LearnedOptimizer(groups, make_rule())
        resumed.load_state_dict(optimizer.state_dict())
        train(model, optimizer, range(6, 9))
        train(again, resumed, range(6, 9))
        assert_same_bits(again, copies(model))

    @pytest.mark.parametrize("other", [{"seed": 1}, {"hidden_size": 5}, {"output_scale": 1.0}], ids=str)
    def test_of_another_rule_is_refused(self, other):
        model = make_model()
        foreign = LearnedOptimizer(model.parameters(), make_rule(**other))
        train(model, foreign, range(2))
        optimizer = LearnedOptimizer(model.parameters(), make_rule())
        with pytest.raises(WeightsFileError, match="belongs to another learned rule"):
            optimizer.load_state_dict(foreign.state_dict())
        assert not optimizer.state

    def test_of_a_rule_with_other_weights_is_refused(self):
        model, rule = make_model(), make_rule()
        with torch.no_grad():
            rule.output.bias += 1e-6
        foreign = LearnedOptimizer(model.parameters(), rule)
        with pytest.raises(WeightsFileError, match="another learned rule"):
            LearnedOptimizer(model.parameters(), make_rule()).load_state_dict(foreign.state_dict())

    def test_of_adam_is_refused(self):
        model = make_model()
        adam = torch.optim.Adam(model.parameters())
        with pytest.raises(WeightsFileError, match="another learned rule"):
            LearnedOptimizer(model.parameters(), make_rule()).load_state_dict(adam.state_dict())

    def test_of_other_parameter_groups_is_refused(self):
        model = make_model()
        optimizer = LearnedOptimizer(model.parameters(), make_rule())
        with pytest.raises(ValueError, match="parameter group"):
            optimizer.load_state_dict(LearnedOptimizer(model[0].parameters(), make_rule()).state_dict())

    @pytest.mark.parametrize(
        "rule", [make_rule(), NTMBFGS(hidden_size=3, preprocessing="log-sign")], ids=["LSTM", "NTM"]
    )
    def test_of_the_first_version_of_the_kit_goes_on(self, rule):
        """It had one axis for all coordinates of a parameter, and another name for what is now the fingerprint."""
        model = make_model()
        model.register_parameter("number", nn.Parameter(torch.tensor(0.5)))
        optimizer = LearnedOptimizer(model.parameters(), rule)

        def go_on(model, optimizer, steps):
            for step in steps:
                optimizer.zero_grad()
                (loss_of(model, step) + model.number.square()).backward()
                optimizer.step()
            return copies(model)

        go_on(model, optimizer, range(3))
        state = copy.deepcopy(optimizer.state_dict())
        for group in state["param_groups"]:
            group["rule"] = group.pop("fingerprint")
            del group["weight_decay"]
        for index, param in enumerate(model.parameters()):
            for name, values in state["state"][index].items():
                leading = values.shape[: values.dim() - param.dim()]
                state["state"][index][name] = values.reshape(*leading, param.numel())
        again = copy.deepcopy(model)
        other = LearnedOptimizer(again.parameters(), rule)
        other.load_state_dict(state)
        expected = go_on(model, optimizer, range(3, 6))
        go_on(again, other, range(3, 6))
        assert_same_bits(again, expected)
        assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]

    def test_meta_parameters_are_moved_nowhere(self):
        """A model without storage, as for planning memory: shapes alone."""
        parameter = nn.Parameter(torch.empty(3, 2, device="meta"))
        parameter.grad = torch.empty(3, 2, device="meta")
        optimizer = LearnedOptimizer([parameter], make_rule())
        optimizer.step()
        assert optimizer.state[parameter]["cell"].device.type == "meta"
        assert optimizer.state[parameter]["cell"].shape == (2, 4, 3, 2)


class TestRefusals:
    @pytest.mark.parametrize("lr", [-0.1, float("nan"), float("inf")])
    def test_a_learning_rate_that_makes_no_sense(self, lr):
        with pytest.raises(ValueError, match=f"lr must be a number of at least 0, got {lr!r}"):
            LearnedOptimizer(make_model().parameters(), make_rule(), lr=lr)
        with pytest.raises(ValueError, match="lr must be a number of at least 0"):
            LearnedOptimizer([{"params": make_model().parameters(), "lr": lr}], make_rule())

    def test_no_parameters(self):
        with pytest.raises(ValueError, match="empty parameter list"):
            LearnedOptimizer([], make_rule())

    @pytest.mark.parametrize(
        "wrong", [{"lr": -1.0}, {"weight_decay": -1.0}, {"momentum": 0.9}, {"state_dtype": torch.bfloat16}], ids=str
    )
    def test_a_group_that_is_refused_is_not_kept(self, wrong):
        optimizer = LearnedOptimizer(make_model().parameters(), make_rule())
        with pytest.raises(ValueError, match=next(iter(wrong))):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], **wrong})
        assert len(optimizer.param_groups) == 1

    def test_a_rule_for_one_group(self):
        """There is one rule to an optimizer; a second one must not be ignored in silence."""
        model = make_model()
        groups = [{"params": model[0].parameters(), "rule": make_rule(seed=1)}, {"params": model[2].parameters()}]
        with pytest.raises(ValueError, match="rule"):
            LearnedOptimizer(groups, make_rule())

    def test_the_groups_of_another_rule(self):
        """They say to which rule their states belong."""
        foreign = LearnedOptimizer(make_model().parameters(), make_rule(seed=1))
        with pytest.raises(ValueError, match="another learned rule"):
            LearnedOptimizer(foreign.param_groups, make_rule())
