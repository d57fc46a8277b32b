"""LearnedOptimizer keeps the contract of torch.optim: what works with Adam works with it."""

import copy
import pickle

import pytest
import torch
from torch import nn

from l2l_kit import learned_optimizer, zoo
from l2l_kit.errors import UnknownNameError, WeightsFileError
from l2l_kit.learned_optimizer import LearnedOptimizer
from l2l_kit.optimizers import LSTMOptimizer

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def make_rule(**arguments):
    """A rule with a memory, so that states matter."""
    return LSTMOptimizer(**{"hidden_size": 4, "preprocessing": "log-sign", "output_scale": 0.1, **arguments})


def gradient_descent(lr):
    """A rule that is gradient descent: one cell, gates open, nothing kept, θ ← θ − lr ∇f up to O((1e-3 ∇f)²)."""
    rule, open_wide, shut, small = LSTMOptimizer(hidden_size=1, num_layers=1), 40.0, -40.0, 1e-3
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

    @pytest.mark.parametrize(
        "make_scheduler",
        [
            lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.1),
            lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10),
            lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)),
        ],
        ids=["StepLR", "CosineAnnealingLR", "LambdaLR"],
    )
    def test_learning_rate_schedulers_work(self, make_scheduler):
        model, twin = make_model(), make_model()
        sgd = torch.optim.SGD(twin.parameters(), lr=0.1)
        train(twin, sgd, range(10), make_scheduler(sgd))
        learned = LearnedOptimizer(model.parameters(), gradient_descent(0.1))
        train(model, learned, range(10), make_scheduler(learned))
        assert learned.param_groups[0]["lr"] == pytest.approx(10 * sgd.param_groups[0]["lr"])
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
        """The same gradients through `LSTMOptimizer.update`, for parameters of any shape."""
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

    @pytest.mark.parametrize("gradient_too", [False, True])
    def test_memory_layout_does_not_matter(self, gradient_too):
        def run(layout):
            param = nn.Parameter(layout(torch.linspace(-1, 1, 12).view(3, 4)))
            optimizer = LearnedOptimizer([param], make_rule())
            for step in range(3):
                gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
                param.grad = layout(gradient) if gradient_too else gradient
                optimizer.step()
            return param.detach()

        transposed = run(lambda tensor: tensor.T.contiguous().T)
        strided = run(lambda tensor: torch.stack([tensor, tensor], dim=2)[:, :, 0])
        assert not run(lambda tensor: tensor.T.contiguous().T).is_contiguous()
        assert torch.equal(transposed, run(torch.Tensor.contiguous))
        assert torch.equal(strided, run(torch.Tensor.contiguous))

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
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("device", DEVICES)
    def test_a_saved_state_continues_bit_for_bit(self, tmp_path, dtype, device):
        model = make_model(dtype, device)
        optimizer = LearnedOptimizer(model.parameters(), make_rule(), lr=0.5)
        train(model, optimizer, range(3))
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "saved.pt")
        train(model, optimizer, range(3, 6))

        saved, again = torch.load(tmp_path / "saved.pt"), make_model(dtype, device)
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
                assert tensor.shape == (2, 4, parameter.numel())

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

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
    def test_deepcopy_and_pickle_continue_bit_for_bit(self, duplicate):
        model = make_model()
        optimizer = LearnedOptimizer(model.parameters(), make_rule())
        train(model, optimizer, range(3))
        twin, other = duplicate((model, optimizer))
        train(model, optimizer, range(3, 6))
        train(twin, other, range(3, 6))
        assert_same_bits(twin, copies(model))
        train(twin, other, range(6, 7))
        assert not torch.equal(twin[0].weight, model[0].weight)
        assert repr(other) == repr(optimizer)

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

    def test_meta_parameters_are_moved_nowhere(self):
        """A model without storage, as for planning memory: shapes alone."""
        parameter = nn.Parameter(torch.empty(3, 2, device="meta"))
        parameter.grad = torch.empty(3, 2, device="meta")
        optimizer = LearnedOptimizer([parameter], make_rule())
        optimizer.step()
        assert optimizer.state[parameter]["cell"].device.type == "meta"
        assert optimizer.state[parameter]["cell"].shape == (2, 4, 6)


class TestRefusals:
    @pytest.mark.parametrize("lr", [-0.1, float("nan"), float("inf")])
    def test_a_learning_rate_that_makes_no_sense(self, lr):
        with pytest.raises(ValueError, match=f"lr must be a number of at least 0, got {lr!r}"):
            LearnedOptimizer(make_model().parameters(), make_rule(), lr=lr)
        with pytest.raises(ValueError, match="lr must be a number of at least 0"):
            LearnedOptimizer([{"params": make_model().parameters(), "lr": lr}], make_rule())

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
    def test_parameters_that_are_not_real_numbers(self, dtype):
        parameter = nn.Parameter(torch.ones(3, dtype=dtype), requires_grad=dtype.is_complex)
        with pytest.raises(TypeError, match="must be floating-point tensors, got torch"):
            LearnedOptimizer([parameter], make_rule())

    def test_no_parameters(self):
        with pytest.raises(ValueError, match="empty parameter list"):
            LearnedOptimizer([], make_rule())

    def test_sparse_gradients(self):
        model = nn.Embedding(4, 2, sparse=True)
        before = model.weight.detach().clone()
        model(torch.tensor([1, 2])).sum().backward()
        with pytest.raises(RuntimeError, match="sparse gradients"):
            LearnedOptimizer(model.parameters(), make_rule()).step()
        assert torch.equal(model.weight, before)

    @pytest.mark.parametrize(
        "group",
        [
            {"params": [nn.Parameter(torch.ones(3, dtype=torch.int64), requires_grad=False)]},
            {"params": [nn.Parameter(torch.ones(3))], "lr": -1.0},
        ],
        ids=["integers", "negative lr"],
    )
    def test_a_group_that_is_refused_is_not_kept(self, group):
        optimizer = LearnedOptimizer(make_model().parameters(), make_rule())
        with pytest.raises((TypeError, ValueError)):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1

    def test_a_rule_for_one_group(self):
        """There is one rule to an optimizer; a second one must not be ignored in silence."""
        model = make_model()
        groups = [{"params": model[0].parameters(), "rule": make_rule(seed=1)}, {"params": model[2].parameters()}]
        with pytest.raises(ValueError, match="rule"):
            LearnedOptimizer(groups, make_rule())
