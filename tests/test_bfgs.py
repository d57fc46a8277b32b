"""L-BFGS by evaluations, against torch's own run in one piece."""

import pytest
import torch

from l2l_kit.evaluation import lbfgs
from l2l_kit.problems import ModuleProblem, Quadratics, QuadraticTasks, TaskBatch
from l2l_kit.tensors import Layout


class Valley(TaskBatch):
    """Rosenbrock's function, whose line searches take several evaluations; notes where it is evaluated."""

    def __init__(self):
        self.points = []

    @property
    def initial_params(self):
        return {"x": torch.tensor([[-1.2]], dtype=torch.float64), "y": torch.tensor([[1.0]], dtype=torch.float64)}

    def losses(self, params, step):
        x, y = params["x"][:, 0], params["y"][:, 0]
        if step == 0:  # the loss is asked for at step 1, too, to see whether it is the same
            self.points.append((x.item(), y.item()))
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def in_one_piece(evaluations):
    """Losses of torch's optimizer that is left alone, at each of its evaluations."""
    valley = Valley()
    point = torch.tensor([[-1.2, 1.0]], dtype=torch.float64, requires_grad=True)
    settings = {"max_iter": 1000, "max_eval": evaluations, "history_size": 10, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([point], tolerance_grad=0, tolerance_change=0, **settings)
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = valley.losses({"x": point[:, :1], "y": point[:, 1:]}, 0)
        losses.append(loss.item())
        (2 * loss).backward()  # times the number of coordinates
        return 2 * loss

    optimizer.step(closure)
    return torch.tensor(losses, dtype=torch.float64)


def test_it_is_torchs_at_each_evaluation_and_none_is_made_twice():
    valley = Valley()
    losses = torch.cat([point.losses for point in lbfgs(valley, 40)])
    torch.testing.assert_close(losses, in_one_piece(45)[:41].cummin(0).values, rtol=1e-9, atol=0)
    assert losses[-1] < 1e-4 < losses[25]  # it went nearly all the way
    assert len(set(valley.points)) == len(valley.points) <= 41 + 10  # the last step's line search may go further


def test_points_are_of_one_place_and_the_first_is_the_start():
    tasks = Quadratics(5).sample(1, torch.Generator().manual_seed(0))
    points = list(lbfgs(tasks, 20))
    assert torch.equal(points[0].params, tasks.theta)
    assert len(points) == 21
    assert len(list(lbfgs(tasks, 0))) == 1
    for point in points:
        expected = tasks.losses_and_gradients(point.params, Layout.of(tasks.initial_params), 0)
        torch.testing.assert_close(point[1:], expected)


def test_it_finds_the_lowest_point_and_stays_there():
    draws = torch.Generator().manual_seed(1)
    W, y, theta = (torch.randn(shape, generator=draws, dtype=torch.float64) for shape in [(1, 4, 4), (1, 4), (1, 4)])
    *_, point = lbfgs(QuadraticTasks(W, y, theta), 300)
    torch.testing.assert_close(point.params[0], torch.linalg.solve(W[0], y[0]))
    assert point.losses < 1e-12


def test_a_loss_that_changes_from_step_to_step_is_refused():
    def batches(draws):
        return torch.randn(4, 2, generator=draws), torch.randn(4, 1, generator=draws)

    linear = ModuleProblem("linear", lambda: torch.nn.Linear(2, 1), batches, torch.nn.functional.mse_loss)
    with pytest.raises(ValueError, match="needs the same loss at every step"):
        next(lbfgs(linear.sample(1, torch.Generator().manual_seed(0)), 3))


def test_several_at_once_are_refused():
    with pytest.raises(ValueError, match="needs one optimizee, got 2"):
        next(lbfgs(Quadratics().sample(2, torch.Generator()), 3))
