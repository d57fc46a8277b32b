"""What every problem must do, and the closed forms of the quadratics."""

import dataclasses
import itertools

import pytest
import torch

from l2l_kit import problems
from l2l_kit.errors import UnknownNameError
from l2l_kit.problems import MNIST, ConditionedQuadratics, Quadratics, QuadraticTasks
from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout, pick_device, ravel

# Every problem, on what needs no download; a new one belongs in here.
PROBLEMS = [
    Quadratics(dim=1),
    Quadratics(dim=7),
    ConditionedQuadratics(dim=5, condition=30.0),
    MNIST(hidden=(3,), batch_size=4, digits="embedded"),
    MNIST(hidden=(3, 2), activation="tanh", batch_size=4, split="test", digits="embedded"),
]


def values_and_gradients(problem, n=4, seed=0, step=3):
    tasks = problem.sample(n, generator(seed, "test"))
    layout = Layout.of(tasks.initial_params)
    return tasks, layout, *tasks.losses_and_gradients(ravel(tasks.initial_params), layout, step)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
class TestEveryProblem:
    def test_is_made_again_from_its_configuration(self, problem):
        assert problems.make(problem.config()) == problem

    def test_cannot_be_changed(self, problem):
        field = dataclasses.fields(problem)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(problem, field, 3)

    def test_one_entry_per_optimizee(self, problem):
        tasks, layout, losses, gradients = values_and_gradients(problem, n=4)
        assert losses.shape == (4,)
        assert gradients.shape == (4, sum(layout.sizes))
        assert all(len(tensor) == 4 for tensor in tasks.initial_params.values())

    def test_same_seed_same_bits(self, problem):
        *_, losses, gradients = values_and_gradients(problem)
        *_, again, gradients_again = values_and_gradients(problem)
        assert torch.equal(losses, again)
        assert torch.equal(gradients, gradients_again)

    def test_other_seed_other_optimizees(self, problem):
        *_, losses, _ = values_and_gradients(problem, seed=0)
        *_, others, _ = values_and_gradients(problem, seed=1)
        assert not torch.isclose(losses, others).any()

    def test_draws_from_its_generator_alone(self, problem):
        torch.manual_seed(1)
        *_, losses, _ = values_and_gradients(problem)
        before = torch.manual_seed(2).get_state()
        *_, again, _ = values_and_gradients(problem)
        assert torch.equal(losses, again)
        assert torch.equal(torch.get_rng_state(), before)

    def test_gradients_are_those_of_a_finite_difference(self, problem):
        tasks, layout, losses, gradients = values_and_gradients(problem)
        rows = ravel(tasks.initial_params)
        direction = torch.randn(rows.shape, generator=generator(0, "direction"))
        ahead, behind = (tasks.losses(layout.unravel(rows + shift * direction), 3) for shift in (3e-3, -3e-3))
        slope = (ahead - behind) / 6e-3
        scale = losses.abs().max()
        torch.testing.assert_close(slope, (gradients * direction).sum(dim=1), rtol=1e-3, atol=1e-3 * scale.item())

    def test_an_optimizee_does_not_depend_on_the_others(self, problem):
        tasks, layout, losses, gradients = values_and_gradients(problem)
        rows = ravel(tasks.initial_params).clone()
        rows[0] += 1
        moved, moved_gradients = tasks.losses_and_gradients(rows, layout, 3)
        assert moved[0] != losses[0]
        torch.testing.assert_close(moved[1:], losses[1:])
        torch.testing.assert_close(moved_gradients[1:], gradients[1:])

    def test_results_are_detached_and_the_start_is_left_alone(self, problem):
        tasks, layout, losses, gradients = values_and_gradients(problem)
        start = {name: tensor.clone() for name, tensor in tasks.initial_params.items()}
        tasks.losses_and_gradients(ravel(tasks.initial_params), layout, 1)
        assert not losses.requires_grad
        assert not gradients.requires_grad
        for name, tensor in tasks.initial_params.items():
            assert torch.equal(tensor, start[name])
            assert not tensor.requires_grad

    def test_gradients_are_given_under_no_grad_too(self, problem):
        *_, expected = values_and_gradients(problem)
        with torch.no_grad():
            *_, gradients = values_and_gradients(problem)
        assert torch.equal(gradients, expected)


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


@pytest.mark.parametrize("condition", [0.5, float("inf"), float("nan")])
def test_a_condition_number_below_one(condition):
    with pytest.raises(ValueError, match="condition must be a number of at least 1"):
        ConditionedQuadratics(condition=condition)


@pytest.mark.parametrize("dim", [0, -3, 2.5, "10", None])
def test_quadratics_refuse_a_size_that_is_none(dim):
    with pytest.raises(ValueError, match=f"dim must be a whole number of at least 1, got {dim!r}"):
        Quadratics(dim=dim)


@pytest.mark.parametrize("name", ["quadratic", "Quadratics", "qadratics"])
def test_an_unknown_problem_gives_the_near_match(name):
    with pytest.raises(UnknownNameError, match="Did you mean 'quadratics'"):
        problems.make({"name": name})


def test_an_unknown_problem_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"unknown problem 'xyz'\. Known: .*'quadratics'"):
        problems.make({"name": "xyz"})


def test_an_unknown_field_of_a_problem_is_named():
    with pytest.raises(UnknownNameError, match="Did you mean 'dim'"):
        problems.make({"name": "quadratics", "dims": 3})


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
