"""Imitation: what is recorded, that LSTMs come to move as their teacher does, and recipes that begin with it."""

import pytest
import torch

from l2l_kit import zoo
from l2l_kit.optimizers import GroupedRule, LSTMRule, baseline
from l2l_kit.problems import Quadratics
from l2l_kit.randomness import generator
from l2l_kit.training import Imitation, imitate, read_recipes, trajectory
from l2l_kit.training.imitation import GroupedBaselines, _record

BRIEF = Imitation(networks=3, horizon=100, unroll=10, passes=30, lr=0.01)


def lstm(**arguments):
    return LSTMRule(preprocessing="log-sign", output_scale=0.1, **arguments)


def test_a_recording_of_the_teacher_has_its_own_updates_as_targets():
    teacher, problem = baseline("nadam", 0.05, 20.0), Quadratics()
    tasks = problem.sample(1, generator(0, "networks"))
    recording, losses = _record(teacher, teacher, tasks, BRIEF, 0)
    points = torch.cat([point.params for point in trajectory(teacher, tasks, BRIEF.horizon)])
    moved = points[1:] - points[:-1]
    # the coordinates are recorded in a drawn order, so compare them as sets of columns
    torch.testing.assert_close(recording.targets.sum(1), moved.sum(1), atol=1e-5, rtol=1e-4)
    assert losses.shape == (BRIEF.horizon + 1,)
    assert recording.gradients.shape == recording.targets.shape == (BRIEF.horizon, 10)


@pytest.mark.parametrize("grouped", [False, True])
def test_it_comes_to_move_as_its_teacher_does(grouped):
    problem = Quadratics()
    optimizer = GroupedRule({"theta": {"preprocessing": "log-sign", "output_scale": 0.1}}) if grouped else lstm()
    teacher = baseline("nadam", 0.05, 50.0)
    if grouped:
        teacher = GroupedBaselines({"theta": teacher})
    tasks = problem.sample(32, generator(0, "apart"))
    with torch.no_grad():
        before = torch.stack([point.losses for point in trajectory(optimizer, tasks, 50)]).mean(1)
        taught = list(imitate(optimizer, teacher, problem, BRIEF))
        after = torch.stack([point.losses for point in trajectory(optimizer, tasks, 50)]).mean(1)
        aim = torch.stack([point.losses for point in trajectory(teacher, tasks, 50)]).mean(1)
    assert [one.network for one in taught] == [1, 2, 3]
    assert taught[-1].error < 0.2
    assert abs(after[-1] - aim[-1]) < 0.2 * abs(before[-1] - aim[-1])


def test_the_same_seed_gives_the_same_bits():
    first, second = lstm(), lstm()
    for optimizer in (first, second):
        list(
            imitate(
                optimizer, baseline("adam", 0.05), Quadratics(), Imitation(networks=1, horizon=50, unroll=5, passes=3)
            )
        )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("wrong", [{"networks": 0}, {"lr": -1.0}, {"unroll": 20, "horizon": 100}, {"passes": 1.5}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Imitation(**wrong)


def test_coordinates_that_depend_on_each_other_are_refused():
    with pytest.raises(ValueError, match="independent"):
        next(imitate(lstm(global_averaging_cells=1), baseline("adam", 0.1), Quadratics(), BRIEF))


def test_a_recipe_with_imitation_is_followed_and_its_imitation_made_once(tmp_path, monkeypatch):
    path = tmp_path / "mine.toml"
    path.write_text("""
[problem]
name = "quadratics"
dim = 3
[optimizer]
hidden_size = 4
preprocessing = "log-sign"
forget_bias = [0.0, 3.0]
[imitation]
networks = 1
horizon = 20
unroll = 2
passes = 2
[imitation.teacher]
name = "nadam"
lr = 0.1
decay = 10.0
[training]
horizon = 4
unroll = 2
epochs = 1
episodes_per_epoch = 1
batch_size = 2
validation_tasks = 2
""")
    (recipe,) = read_recipes(path)
    made = zoo.follow_recipe(recipe, tmp_path, progress=False)
    card = zoo.card(made)
    assert card["imitation"]["teacher"] == {"name": "nadam", "lr": 0.1, "decay": 10.0}
    assert card["optimizer"]["forget_bias"] == [0.0, 3.0]
    (tmp_path / "cache" / "runs" / "mine" / "checkpoint.safetensors").unlink()
    monkeypatch.setattr(zoo, "imitate", None)  # a second imitation would fail
    again = zoo.load(zoo.follow_recipe(recipe, tmp_path, progress=False))
    assert all(torch.isfinite(weight).all() for weight in again.parameters())


def test_a_wrong_teacher_is_named(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[problem]\nname="quadratics"\n[optimizer]\n[training]\n[imitation]\nteacher = {name = "adan", lr = 1.0}\n'
    )
    with pytest.raises(ValueError, match="adan"):
        read_recipes(path)


def test_a_learning_rate_decays_as_one_over_the_root():
    rule = baseline("sgd", 0.5, 4.0)
    params = {"x": torch.zeros(2, 3)}
    state = rule.init(params)
    for step in range(10):
        updates, state = rule.update({"x": torch.ones(2, 3)}, state)
        torch.testing.assert_close(updates["x"], torch.full((2, 3), -0.5 / (1 + step / 4) ** 0.5))


def test_baselines_by_kind_are_each_their_own():
    params = {"conv.a": torch.zeros(2, 3), "fc.b": torch.zeros(2), "conv.c": torch.zeros(2, 1)}
    gradients = [
        {name: torch.randn(t.shape, generator=generator(0, name, i)) for name, t in params.items()} for i in range(3)
    ]
    both = GroupedBaselines({"conv": baseline("adam", 0.1), "fc": baseline("nag", 0.2)})
    alone = {"conv.a": baseline("adam", 0.1), "fc.b": baseline("nag", 0.2), "conv.c": baseline("adam", 0.1)}
    state, states = both.init(params), {name: rule.init({name: params[name]}) for name, rule in alone.items()}
    for each in gradients:
        updates, state = both.update(each, state)
        assert list(updates) == list(params)
        for name, rule in alone.items():
            expected, states[name] = rule.update({name: each[name]}, states[name])
            torch.testing.assert_close(updates[name], expected[name])


def test_memories_are_spread_between_two_forget_biases():
    layer = lstm(hidden_size=200, forget_bias=(0.0, 7.0)).layers[0]
    forget = layer.bias[200:400]
    assert forget.min() < 1 < 6 < forget.max()
    assert layer.bias[:200].mean() < -1
    with pytest.raises(ValueError, match="forget_bias"):
        lstm(forget_bias=(0.0, 1.0, 2.0))
