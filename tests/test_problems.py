"""What every problem must do, how problems are made from configurations, and the closed forms of the quadratics."""

import dataclasses
import itertools
import json

import pytest
import torch
from torch.nn import Linear, functional

from l2l_kit import problems
from l2l_kit.errors import UnknownNameError
from l2l_kit.problems import (
    CIFAR,
    MNIST,
    ConditionedQuadratics,
    ModuleProblem,
    NeuralArt,
    Problem,
    Quadratics,
    QuadraticTasks,
)
from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout, pick_device, ravel


def valley(draws):
    return {"x": torch.randn(2, generator=draws), "y": torch.randn((), generator=draws)}, {"a": torch.ones(2)}


def rosenbrock(params, data):
    return (data["a"] - params["x"]).square().sum() + (params["y"] - params["x"].square()).square().sum()


def lines(draws):
    x = torch.randn(5, 1, generator=draws)
    return x, 3 * x - 1


# Every problem, on what needs no download; a new one belongs in here.
PROBLEMS = {
    "quadratics": Quadratics(dim=7),
    "conditioned": ConditionedQuadratics(dim=5, condition=30.0),
    "mnist": MNIST(hidden=(3,), batch_size=4, source="embedded"),
    "mnist, deep": MNIST([3, 2], "tanh", init_scale=[0.01, 1], batch_size=4, split="test", source="embedded"),
    "cifar": CIFAR([3, 1], batch_size=8, source="embedded"),
    "neural art": NeuralArt("mosaic", 16, "small", "validation", "embedded", tv_weight=0.5),
    "functions": problems.register(Problem.from_functions("valley", valley, rosenbrock)),
    "module": problems.register(ModuleProblem("line", lambda: Linear(1, 1), lines, functional.mse_loss)),
}


def values_and_gradients(problem, num_tasks=4, seed=0, step=3):
    tasks = problem.sample(num_tasks, generator(seed, "test"))
    layout = Layout.of(tasks.initial_params)
    return tasks, layout, *tasks.losses_and_gradients(ravel(tasks.initial_params), layout, step)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
class TestEveryProblem:
    def test_is_made_again_from_its_configuration(self, problem):
        again = problems.make(json.loads(json.dumps(problem.config())))
        assert again == problem
        assert hash(again) == hash(problem)

    def test_cannot_be_changed(self, problem):
        field = dataclasses.fields(problem)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(problem, field, 3)

    def test_one_entry_per_task(self, problem):
        tasks, layout, losses, gradients = values_and_gradients(problem)
        assert losses.shape == (4,)
        torch.testing.assert_close(losses, tasks.losses(tasks.initial_params, 3))
        assert gradients.shape == (4, sum(layout.sizes))
        assert all(len(tensor) == 4 for tensor in tasks.initial_params.values())

    def test_same_seed_same_bits_whatever_torch_draws_elsewhere(self, problem):
        torch.manual_seed(1)
        *_, losses, gradients = values_and_gradients(problem)
        before = torch.manual_seed(2).get_state()
        *_, again, gradients_again = values_and_gradients(problem)
        assert torch.equal(losses, again)
        assert torch.equal(gradients, gradients_again)
        assert torch.equal(torch.get_rng_state(), before)

    def test_other_seed_other_tasks(self, problem):
        *_, gradients = values_and_gradients(problem, seed=0)
        *_, others = values_and_gradients(problem, seed=1)
        assert all(not torch.equal(one, other) for one, other in zip(gradients, others, strict=True))

    def test_gradients_are_those_of_a_finite_difference(self, problem):
        tasks, layout, _, gradients = values_and_gradients(problem)
        rows = ravel(tasks.initial_params)
        # Along the gradient, so that the loss changes by much more than rounding.
        direction = gradients / gradients.norm(dim=1, keepdim=True)
        ahead, behind = (tasks.losses(layout.unravel(rows + shift * direction), 3) for shift in (1e-4, -1e-4))
        torch.testing.assert_close((ahead - behind) / 2e-4, gradients.norm(dim=1), rtol=0.1, atol=5e-3)

    def test_a_task_does_not_depend_on_the_others(self, problem):
        tasks, layout, losses, gradients = values_and_gradients(problem)
        rows = ravel(tasks.initial_params).clone()
        rows[0] += torch.linspace(-1, 1, rows.shape[1])
        moved, moved_gradients = tasks.losses_and_gradients(rows, layout, 3)
        assert moved[0] != losses[0]
        torch.testing.assert_close(moved[1:], losses[1:])
        torch.testing.assert_close(moved_gradients[1:], gradients[1:])

    def test_results_are_detached_and_the_start_is_left_alone(self, problem):
        tasks, layout, losses, gradients = values_and_gradients(problem)
        start = {name: tensor.clone() for name, tensor in tasks.initial_params.items()}
        with torch.no_grad():  # gradients are given here, too
            *_, again = tasks.losses_and_gradients(ravel(tasks.initial_params), layout, 3)
        assert torch.equal(again, gradients)
        assert not losses.requires_grad
        assert not gradients.requires_grad
        for name, tensor in tasks.initial_params.items():
            assert torch.equal(tensor, start[name])
            assert not tensor.requires_grad

    def test_one_that_is_selected_is_as_it_was_among_the_others(self, problem):
        tasks, layout, losses, gradients = values_and_gradients(problem)
        if isinstance(problem, MNIST | CIFAR):
            with pytest.raises(TypeError, match="cannot be taken apart"):
                tasks.select(2)
            return
        one = tasks.select(2)
        loss, gradient = one.losses_and_gradients(ravel(one.initial_params), layout, 3)
        torch.testing.assert_close(loss, losses[2:3])
        torch.testing.assert_close(gradient, gradients[2:3])


def test_quadratics_equal_their_closed_form():
    draws = torch.Generator().manual_seed(0)
    W, y, theta = (torch.randn(shape, generator=draws, dtype=torch.float64) for shape in [(5, 4, 4), (5, 4), (5, 4)])
    tasks = QuadraticTasks(W, y, theta)
    losses, gradients = tasks.losses_and_gradients(theta, Layout.of(tasks.initial_params), 0)
    for n in range(5):
        residual = W[n] @ theta[n] - y[n]
        torch.testing.assert_close(losses[n], residual @ residual, rtol=1e-13, atol=0)
        torch.testing.assert_close(gradients[n], 2 * W[n].T @ residual, rtol=1e-12, atol=1e-13)
    vectors = torch.randn(5, 4, generator=draws, dtype=torch.float64)
    products = tasks.hessian_products(theta, Layout.of(tasks.initial_params), 0, vectors)
    torch.testing.assert_close(products, 2 * torch.einsum("nki,nkj,nj->ni", W, W, vectors), rtol=1e-12, atol=1e-13)


def test_quadratics_are_standard_gaussian():
    """W, y and θ₀, as in section 3.1: mean 0, variance 1, and not the same numbers."""
    tasks = Quadratics(dim=10).sample(1000, generator(0, "test"))
    for tensor in (tasks.W, tasks.y, tasks.theta):
        assert abs(tensor.mean()) < 0.05
        assert tensor.std() == pytest.approx(1, abs=0.02)
    pairs = itertools.combinations([tasks.W[:, 0], tasks.y, tasks.theta], 2)
    assert all(abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.05 for a, b in pairs)


def test_conditioned_quadratics_differ_in_their_condition_number_alone():
    plain, round_, narrow = (
        problem.sample(50, generator(0, "test"))
        for problem in (Quadratics(), ConditionedQuadratics(condition=1), ConditionedQuadratics(condition=300.0))
    )
    for functions, condition in ((round_, 1.0), (narrow, 300.0)):
        hessians = 2 * functions.W.mT @ functions.W
        torch.testing.assert_close(torch.linalg.cond(hessians), torch.full((50,), condition), rtol=1e-2, atol=0)
        torch.testing.assert_close(hessians.diagonal(dim1=1, dim2=2).mean(dim=1), torch.full((50,), 20.0))
        assert torch.equal(functions.y, plain.y)
        assert torch.equal(functions.theta, plain.theta)
    left, _, right = torch.linalg.svd(plain.W)
    values = left.mT @ narrow.W @ right.mT
    torch.testing.assert_close(values, torch.diag_embed(values.diagonal(dim1=1, dim2=2)), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "field", "values", "message"),
    [
        (Quadratics, "dim", (0, -3, 2.5, "10", None), "a whole number of at least 1"),
        (ConditionedQuadratics, "condition", (0.5, float("inf"), float("nan")), "a number of at least 1"),
        (MNIST, "hidden", (20, "20", None, (0,), (20, -1), (2.5,), ("20",)), "the units of each layer"),
        (MNIST, "batch_size", (0, -1, 2.5, "128", None), "a whole number of at least 1"),
        (MNIST, "init_scale", (0, -0.1, float("nan"), float("inf"), "0.1", None), "a positive number"),
        (MNIST, "init_scale", ((), (0.1,), (1, 0.1), (0, 1), (0.1, float("inf")), ("0.1", 1)), "a positive number, or"),
        (CIFAR, "labels", ((), (1,), (1, 1), (1, 10), (-1, 2), "12", 5, ("1", "2")), "two or more different ones"),
        (CIFAR, "batch_size", (0, 1, 2.5, "128", None), "a whole number of at least 2"),
        (CIFAR, "init_scale", (0, -0.1, float("nan"), float("inf"), "0.1", None), "a number above 0"),
        (NeuralArt, "size", (8, 64.0), "a whole number of at least 16"),
        (NeuralArt, "style_weight", (-1, float("nan")), "a number of at least 0"),
        (NeuralArt, "init_scale", (-1, "1"), "a number of at least 0"),
    ],
)
def test_a_value_that_makes_no_sense_is_quoted(kind, field, values, message):
    for value in values:
        with pytest.raises(ValueError, match=rf"{kind.__name__}: {field} must be {message}") as caught:
            kind(**{field: value})
        assert str(caught.value).endswith(f"got {value!r}.")


@pytest.mark.parametrize(
    ("make", "near"),
    [
        (lambda: problems.make({"name": "Quadratic"}), "quadratics"),
        (lambda: problems.make({"name": "quadratics", "dims": 3}), "dim"),
        (lambda: problems.make({"name": "vally"}), "valley"),
        (lambda: MNIST(activation="Relu"), "relu"),
        (lambda: MNIST(split="tset"), "test"),
        (lambda: MNIST(source="embeded"), "embedded"),
        (lambda: CIFAR(source="ful"), "full"),
        (lambda: NeuralArt(source="ful"), "full"),
        (lambda: NeuralArt(network="vgg"), "vgg16"),
        (lambda: NeuralArt(split="tests"), "test"),
        (lambda: NeuralArt("mosiac", 16, "small").sample(1, generator(0)), "mosaic"),
    ],
)
def test_an_unknown_word_gives_the_near_match(make, near):
    with pytest.raises(UnknownNameError, match=f"Did you mean '{near}'"):
        make()


@pytest.mark.parametrize(("name", "old"), [("mnist", "digits"), ("cifar", "variant"), ("neural_art", "contents")])
def test_configurations_of_older_versions_are_read(name, old):
    assert problems.make({"name": name, old: "embedded"}) == problems.make({"name": name, "source": "embedded"})
    assert problems.with_current_names({"name": "mine", old: 3}) == {"name": "mine", old: 3}


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
    tensors = {
        "matrix": torch.arange(12.0).view(2, 3, 2),
        "number": torch.tensor([20.0, 21.0]),
        "vector": torch.tensor([[30.0, 31.0], [32.0, 33.0]]),
        "empty": torch.empty(2, 0),
    }
    layout, rows = Layout.of(tensors), ravel(tensors)
    assert layout.sizes == [6, 1, 2, 0]
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5, 20, 30, 31], [6, 7, 8, 9, 10, 11, 21, 32, 33]]
    for name, tensor in layout.unravel(rows).items():
        assert torch.equal(tensor, tensors[name])


@pytest.mark.parametrize(
    "other", [(1, "test"), (0, "test", 0), (0, "tuning"), (0, "te", "st")], ids=["seed", "number", "purpose", "parts"]
)
def test_generators_differ_by_seed_and_purpose(other):
    assert torch.equal(torch.rand(5, generator=generator(0, "test")), torch.rand(5, generator=generator(0, "test")))
    assert not torch.equal(torch.rand(5, generator=generator(0, "test")), torch.rand(5, generator=generator(*other)))


def test_the_device_is_the_best_there_is_unless_asked_for():
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu").type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_a_gpu_that_is_not_there_is_refused(device):
    with pytest.raises(ValueError, match="torch sees no GPU"):
        pick_device(device)
