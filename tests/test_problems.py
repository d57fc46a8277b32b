"""What every problem must do, how problems are made from configurations, and the closed forms of the quadratics."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from small import PROBLEMS, rosenbrock, same_bits, valley

from l2l_kit import problems
from l2l_kit.errors import UnknownNameError
from l2l_kit.optimizers import LSTMRule, baseline
from l2l_kit.problems import (
    CIFAR,
    MNIST,
    ConditionedQuadratics,
    NeuralArt,
    Problem,
    Quadratics,
    QuadraticTasks,
    neural_art,
)
from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout, pick_device, ravel
from l2l_kit.training import MetaTraining


def sampled(problem, num_tasks=4, seed=0):
    """Tasks, their layout and rows, and losses and gradients there."""
    tasks = problem.sample(num_tasks, generator(seed, "test"))
    layout, rows = Layout.of(tasks.initial_params), ravel(tasks.initial_params)
    return tasks, layout, rows, *tasks.losses_and_gradients(rows, layout, 3)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
class TestEveryProblem:
    def test_is_made_again_from_its_configuration_and_cannot_be_changed(self, problem):
        again = problems.make(json.loads(json.dumps(problem.config())))
        assert again == problem
        assert hash(again) == hash(problem)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(problem, dataclasses.fields(problem)[0].name, 3)

    def test_one_entry_per_task_and_the_start_is_left_alone(self, problem):
        tasks, layout, rows, losses, gradients = sampled(problem)
        assert losses.shape == (4,)
        assert gradients.shape == (4, sum(layout.sizes))
        torch.testing.assert_close(losses, tasks.losses(tasks.initial_params, 3))
        with torch.no_grad():  # gradients are given here, too
            *_, again = tasks.losses_and_gradients(rows, layout, 3)
        assert torch.equal(again, gradients)
        for tensor in (losses, gradients, *tasks.initial_params.values()):
            assert len(tensor) == 4
            assert not tensor.requires_grad
        fresh = problem.sample(4, generator(0, "test")).initial_params
        assert same_bits(tasks.initial_params.values(), fresh.values())

    def test_same_seed_same_bits_whatever_torch_draws_elsewhere_and_other_seed_other_tasks(self, problem):
        torch.manual_seed(1)
        *_, losses, gradients = sampled(problem)
        before = torch.manual_seed(2).get_state()
        *_, again, gradients_again = sampled(problem)
        assert same_bits((losses, gradients), (again, gradients_again))
        assert torch.equal(torch.get_rng_state(), before)
        *_, others = sampled(problem, seed=1)
        assert not any(torch.equal(one, other) for one, other in zip(gradients, others, strict=True))

    def test_gradients_are_those_of_a_finite_difference(self, problem):
        tasks, layout, rows, _, gradients = sampled(problem)
        # Along the gradient, so that the loss changes by much more than rounding.
        direction = gradients / gradients.norm(dim=1, keepdim=True)
        ahead, behind = (tasks.losses(layout.unravel(rows + shift * direction), 3) for shift in (1e-4, -1e-4))
        torch.testing.assert_close((ahead - behind) / 2e-4, gradients.norm(dim=1), rtol=0.1, atol=5e-3)

    def test_a_task_does_not_depend_on_the_others(self, problem):
        """Nor does one that is selected among them."""
        tasks, layout, rows, losses, gradients = sampled(problem)
        changed = torch.cat([rows[:1] + torch.linspace(-1, 1, rows.shape[1]), rows[1:]])
        moved, moved_gradients = tasks.losses_and_gradients(changed, layout, 3)
        assert moved[0] != losses[0]
        torch.testing.assert_close(moved[1:], losses[1:])
        torch.testing.assert_close(moved_gradients[1:], gradients[1:])
        if isinstance(problem, MNIST | CIFAR):
            with pytest.raises(ValueError, match="cannot be taken apart"):
                tasks.select(2)
        else:
            loss, gradient = tasks.select(2).losses_and_gradients(rows[2:3], layout, 3)
            torch.testing.assert_close(loss, losses[2:3])
            torch.testing.assert_close(gradient, gradients[2:3])

    def test_parts_are_the_whole(self, problem, monkeypatch):
        monkeypatch.setattr(neural_art, "_AT_ONCE", 1)  # pixels, so that each picture is a part
        tasks, layout, rows, losses, _ = sampled(problem)
        parts = tasks.parts()
        assert len(parts) == (4 if isinstance(problem, NeuralArt) else 1)
        assert torch.equal(torch.cat([ravel(part.initial_params) for part in parts]), rows)
        its_rows = zip(parts, rows.chunk(len(parts)), strict=True)
        torch.testing.assert_close(
            torch.cat([part.losses(layout.unravel(point), 3) for part, point in its_rows]), losses
        )


def test_quadratics_equal_their_closed_form():
    W, y, theta, vectors = torch.randn(4, 5, 4, 4, generator=generator(0), dtype=torch.float64)
    y, theta, vectors = (each[:, 0] for each in (y, theta, vectors))
    tasks = QuadraticTasks(W, y, theta)
    layout = Layout.of(tasks.initial_params)
    losses, gradients = tasks.losses_and_gradients(theta, layout, 0)
    for n in range(5):
        residual = W[n] @ theta[n] - y[n]
        torch.testing.assert_close(losses[n], residual @ residual, rtol=1e-13, atol=0)
        torch.testing.assert_close(gradients[n], 2 * W[n].T @ residual, rtol=1e-12, atol=1e-13)
    products = tasks.hessian_products(theta, layout, 0, vectors)
    torch.testing.assert_close(products, 2 * torch.einsum("nki,nkj,nj->ni", W, W, vectors), rtol=1e-12, atol=1e-13)


def test_quadratics_are_standard_gaussian():
    """W, y and θ₀, as in section 3.1: mean 0, variance 1, and not the same numbers."""
    tasks = Quadratics(dim=10).sample(1000, generator(0, "test"))
    for tensor in (tasks.W, tasks.y, tasks.theta):
        assert abs(tensor.mean()) < 0.05
        assert tensor.std() == pytest.approx(1, abs=0.02)
    together = torch.stack([tasks.W[:, 0].flatten(), tasks.y.flatten(), tasks.theta.flatten()])
    torch.testing.assert_close(torch.corrcoef(together), torch.eye(3), rtol=0, atol=0.05)


def test_conditioned_quadratics_differ_in_their_condition_number_alone():
    plain, round_, narrow = (
        problem.sample(50, generator(0, "test"))
        for problem in (Quadratics(), ConditionedQuadratics(condition=1), ConditionedQuadratics(condition=300.0))
    )
    for functions, condition in ((round_, 1.0), (narrow, 300.0)):
        hessians = 2 * functions.W.mT @ functions.W
        torch.testing.assert_close(torch.linalg.cond(hessians), torch.full((50,), condition), rtol=1e-2, atol=0)
        torch.testing.assert_close(hessians.diagonal(dim1=1, dim2=2).mean(dim=1), torch.full((50,), 20.0))
        assert same_bits((functions.y, functions.theta), (plain.y, plain.theta))
    left, _, right = torch.linalg.svd(plain.W)
    values = left.mT @ narrow.W @ right.mT
    torch.testing.assert_close(values, torch.diag_embed(values.diagonal(dim1=1, dim2=2)), rtol=0, atol=1e-3)


NAN, INF = float("nan"), float("inf")
WRONG = [
    (Quadratics, "dim", (0, 2.5, "10", None), "a whole number of at least 1"),
    (ConditionedQuadratics, "condition", (0.5, INF, NAN), "a number of at least 1"),
    (MNIST, "hidden", (20, "20", (0,), (2.5,), ((3,), 20), ((3,), (0,))), "the units of each layer"),
    (MNIST, "init_scale", (0, NAN, INF, "0.1", (), (0.1,), (1, 0.1), (0, 1), (0.1, INF)), "a positive number, or"),
    (CIFAR, "labels", ((1,), (1, 1), (1, 10), "12", 5, ("1", "2"), (1.0, 2.0)), "two or more different ones"),
    (CIFAR, "batch_size", (0, 1), "a whole number of at least 2"),
    (CIFAR, "init_scale", (0, NAN, "0.1"), "a positive number"),
    (NeuralArt, "style_weight", (-1, NAN), "a number of at least 0"),
]


@pytest.mark.parametrize(("kind", "field", "values", "message"), WRONG)
def test_a_value_that_makes_no_sense_is_quoted(kind, field, values, message):
    for value in values:
        with pytest.raises(ValueError, match=rf"{kind.__name__}: {field} must be {message}") as caught:
            kind(**{field: value})
        assert str(caught.value).endswith(f"got {value!r}.")


@pytest.mark.parametrize(
    ("make", "fields"),
    [
        (Quadratics, {"dim": np.int64(3)}),
        (CIFAR, {"labels": tuple(np.arange(2)), "init_scale": np.float32(0.5), "source": "embedded"}),
        (MNIST, {"hidden": (np.int64(3),), "source": "embedded"}),
        (MetaTraining, {"horizon": np.int64(50), "meta_lr": np.float64(0.5)}),
        (LSTMRule, {"hidden_size": np.int64(3)}),
        (baseline, {"name": "adam", "lr": np.float32(0.5)}),
    ],
)
def test_numpys_numbers_are_taken_for_pythons(make, fields):
    """Neither JSON nor code that is printed for a reader knows numpy's."""
    made = make(**fields)
    plain = {name: np.array(value).tolist() for name, value in fields.items()}
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
    found = {name: getattr(made, name) for name in fields if hasattr(made, name)}
    assert repr(found) == repr({name: plain[name] for name in found})


@pytest.mark.parametrize(
    ("make", "near"),
    [
        (lambda: problems.make({"name": "Quadratic"}), "quadratics"),
        (lambda: problems.make({"name": "quadratics", "dims": 3}), "dim"),
        (lambda: problems.make({"name": "vally"}), "valley"),
        (lambda: MNIST(activation="Relu"), "relu"),
        (lambda: NeuralArt("mosiac", 16, "small").sample(1, generator(0)), "mosaic"),
    ],
)
def test_an_unknown_word_gives_the_near_match(make, near):
    with pytest.raises(UnknownNameError, match=f"Did you mean '{near}'"):
        make()


def test_the_kit_s_own_names_are_not_given_away():
    with pytest.raises(ValueError, match="'mnist' is a problem of the kit"):
        problems.register(Problem.from_functions("mnist", valley, rosenbrock))
    with pytest.raises(TypeError, match="expected a problem"):
        problems.register("mine")
    with pytest.raises(UnknownNameError, match="unknown field of valley 'dim'"):
        problems.make({"name": "valley", "dim": 3})


def test_a_file_is_found_or_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        problems.make({"name": f"{tmp_path}/mine.py:mine"})
    (tmp_path / "json.py").touch()
    with pytest.raises(ValueError, match="another module is called 'json'"):
        problems.make({"name": f"{tmp_path}/json.py:mine"})


def test_ravel_and_unravel_are_inverse():
    tensors = {"matrix": torch.arange(12.0).view(2, 3, 2), "number": torch.tensor([20.0, 21.0])}
    tensors |= {"vector": torch.tensor([[30.0, 31.0], [32.0, 33.0]]), "empty": torch.empty(2, 0)}
    layout, rows = Layout.of(tensors), ravel(tensors)
    assert layout.sizes == [6, 1, 2, 0]
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5, 20, 30, 31], [6, 7, 8, 9, 10, 11, 21, 32, 33]]
    assert same_bits(layout.unravel(rows).values(), tensors.values())


@pytest.mark.parametrize("other", [(1, "test"), (0, "test", 0), (0, "tuning"), (0, "te", "st")], ids=str)
def test_generators_differ_by_seed_and_purpose(other):
    first, again, another = (torch.rand(5, generator=generator(*each)) for each in ((0, "test"), (0, "test"), other))
    assert torch.equal(first, again)
    assert not torch.equal(first, another)


def test_the_device_is_the_best_there_is_unless_asked_for():
    there = torch.cuda.is_available()
    assert pick_device().type == ("cuda" if there else "cpu")
    assert pick_device("cpu").type == "cpu"
    for device in () if there else ("cuda", "cuda:1", torch.device("cuda")):
        with pytest.raises(ValueError, match="torch sees no GPU"):
            pick_device(device)
    with pytest.raises(ValueError, match="cuda:99"):
        pick_device("cuda:99")
