"""The meta-training loop: it learns, the same bits each time, through kills, and stops where numbers break."""

import gc
import itertools
import json
import math
import os
from dataclasses import asdict, dataclass, field, fields, replace
from typing import ClassVar

import pytest
import torch

from l2l_kit import storage
from l2l_kit.errors import MetaTrainingDivergedError, UnknownNameError, WeightsFileError
from l2l_kit.optimizers import LSTMOptimizer
from l2l_kit.problems import Problem, Quadratics, QuadraticTasks
from l2l_kit.training import History, MetaTrainer, MetaTraining, Progress, meta_train

SETTINGS = MetaTraining(
    horizon=6, unroll=4, epochs=3, episodes_per_epoch=2, batch_size=5, meta_lr=0.01, validation_tasks=7
)
EVENTS = 1 + 3 * (2 + 1)  # a validation, and for each epoch its episodes and a validation


def make_optimizer(**arguments):
    return LSTMOptimizer(**{"hidden_size": 4, "num_layers": 2, **arguments})


def make_trainer(checkpoint=None, problem=None, optimizer=None, **changes):
    return MetaTrainer(
        optimizer or make_optimizer(),
        problem or Quadratics(dim=2),
        replace(SETTINGS, **changes),
        checkpoint=checkpoint,
        device="cpu",
    )


def finish(trainer):
    for _ in trainer.run():
        pass
    return trainer


def outcome(trainer):
    """Everything that a run leaves behind, but the clock."""
    weights = {name: tensor.clone() for name, tensor in trainer.optimizer.state_dict().items()}
    losses = [(record.epoch, record.training_loss, record.validation_loss) for record in trainer.history.records]
    return weights, losses


def checkpointed(path):
    """All of a checkpoint but the clock."""
    tensors, about = storage.read_tensors(path, 1)
    for record in about["history"]:
        del record["seconds"]
    return tensors, about


def assert_same_bits(found, expected):
    (weights, losses), (expected_weights, expected_losses) = found, expected
    assert weights.keys() == expected_weights.keys()
    for name, tensor in expected_weights.items():
        assert torch.equal(weights[name], tensor), name
    assert repr(losses) == repr(expected_losses)  # repr: NaN equals NaN, and floats to the last bit


RUNS = {
    "first order": {},
    "second derivatives": {"second_derivatives": True},
    "best in between": {"meta_lr": 0.03, "schedule": "constant", "clip_norm": None, "seed": 2},
}


class TestLearning:
    def test_lowers_the_loss_a_lot(self):
        optimizer = LSTMOptimizer(hidden_size=8)
        history = meta_train(
            optimizer,
            Quadratics(dim=2),
            horizon=20,
            unroll=10,
            epochs=4,
            episodes_per_epoch=20,
            batch_size=32,
            meta_lr=0.02,
            validation_tasks=100,
            progress=False,
            device="cpu",
        )
        assert history.stopped == "finished"
        assert history.best.epoch > 0
        assert history.best.validation_loss < 0.25 * history.records[0].validation_loss

    def test_trains_the_optimizer_that_it_was_given(self):
        optimizer = make_optimizer()
        before = {name: weight.clone() for name, weight in optimizer.state_dict().items()}
        finish(make_trainer(optimizer=optimizer))
        assert all(not torch.equal(weight, before[name]) for name, weight in optimizer.state_dict().items())
        assert all(weight.grad is None for weight in optimizer.parameters())

    def test_events_tell_where_the_run_stands(self):
        events = list(make_trainer().run())
        assert all(isinstance(event, Progress) for event in events)
        assert [event.epoch for event in events] == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
        assert [event.episode for event in events] == [0, 1, 2, 2, 3, 4, 4, 5, 6, 6]
        validated = [event for event in events if event.validation_losses is not None]
        assert [event.epoch for event in validated] == [0, 1, 2, 3]
        assert all(event.validation_losses.shape == (7, 7) for event in validated)
        best = [event.best_validation_loss for event in events]
        assert best == sorted(best, reverse=True)

    def test_ends_with_the_best_weights_by_validation(self):
        trainer = make_trainer(**RUNS["best in between"])
        kept = {}
        for event in trainer.run():
            if event.validation_losses is not None:
                kept[event.epoch] = {name: weight.clone() for name, weight in trainer.optimizer.state_dict().items()}
        history = trainer.history
        losses = [record.validation_loss for record in history.records]
        assert history.best.epoch == losses.index(min(losses))
        assert history.best.epoch < 3, "the run must get worse at its end for this test to tell"
        for name, weight in trainer.optimizer.state_dict().items():
            assert torch.equal(weight, kept[history.best.epoch][name])

    def test_cancelling_keeps_the_best_weights(self):
        trainer = make_trainer()
        events = trainer.run()
        next(events)
        initial = {name: weight.clone() for name, weight in trainer.optimizer.state_dict().items()}
        next(events)
        assert any(not torch.equal(weight, initial[name]) for name, weight in trainer.optimizer.state_dict().items())
        events.close()
        assert trainer.history.stopped == "cancelled"
        assert all(torch.equal(weight, initial[name]) for name, weight in trainer.optimizer.state_dict().items())

    def test_ctrl_c_ends_the_training_and_keeps_the_best(self):
        calls = itertools.count()

        class Interrupted(Quadratics):
            def sample(self, num_tasks, generator, device=None):
                if next(calls) == 4:
                    raise KeyboardInterrupt
                return super().sample(num_tasks, generator, device)

        optimizer = make_optimizer()
        history = meta_train(optimizer, Interrupted(dim=2), progress=False, device="cpu", **asdict(SETTINGS))
        assert history.stopped == "cancelled"
        assert [record.epoch for record in history.records] == [0, 1]
        uninterrupted = make_trainer()
        for event in uninterrupted.run():
            if event.epoch == 1 and event.validation_losses is not None:
                break
        assert history.best.validation_loss == uninterrupted.history.best.validation_loss


class TestBits:
    @pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
    def test_same_seed_same_bits(self, changes):
        torch.manual_seed(1)
        first = outcome(finish(make_trainer(**changes)))
        before = torch.manual_seed(2).get_state()
        assert_same_bits(outcome(finish(make_trainer(**changes))), first)
        assert torch.equal(torch.get_rng_state(), before), "the global generator is not the kit's to use"

    def test_other_seed_other_bits(self):
        first, other = (outcome(finish(make_trainer(seed=seed))) for seed in (0, 1))
        assert not torch.equal(first[0]["output.weight"], other[0]["output.weight"])

    @pytest.mark.parametrize("second_derivatives", [False, True])
    def test_every_episode_and_the_validation_meet_other_optimizees(self, second_derivatives):
        starts = []

        @dataclass(frozen=True)
        class Watched(Quadratics):
            def sample(self, num_tasks, generator, device=None):
                tasks = super().sample(num_tasks, generator, device)
                starts.append(tasks.theta)
                return tasks

        finish(make_trainer(problem=Watched(dim=2), second_derivatives=second_derivatives))
        assert [len(start) for start in starts] == [7, *[5] * 6]
        numbers = torch.cat(starts).flatten()
        assert len(numbers.unique()) == len(numbers)

    def test_a_checkpoint_does_not_change_the_run(self, tmp_path):
        assert_same_bits(outcome(finish(make_trainer(tmp_path / "run"))), outcome(finish(make_trainer())))

    @pytest.mark.parametrize("kill_after", range(EVENTS + 1))
    @pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
    def test_a_killed_run_continues_with_the_same_bits(self, tmp_path, changes, kill_after):
        """The killed run's generator is neither finished nor closed before the next one begins."""
        whole, path = make_trainer(tmp_path / "whole", **changes), tmp_path / "killed"
        killed = make_trainer(path, **changes).run()
        list(itertools.islice(killed, kill_after))
        resumed = make_trainer(path, **changes)
        assert_same_bits(outcome(finish(resumed)), outcome(finish(whole)))
        assert_same_bits(checkpointed(path), checkpointed(tmp_path / "whole"))
        assert resumed.history.stopped == "finished"
        del killed

    def test_a_run_that_is_killed_again_and_again_continues(self, tmp_path):
        """At most one epoch at a time."""
        killed = []
        for _ in range(4):
            killed.append(make_trainer(tmp_path / "run").run())
            list(itertools.islice(killed[-1], 4))
        assert_same_bits(outcome(finish(make_trainer(tmp_path / "run"))), outcome(finish(make_trainer())))

    @pytest.mark.parametrize("kill_at", range(4))
    def test_a_kill_while_the_checkpoint_is_written_leaves_the_one_before(self, tmp_path, monkeypatch, kill_at):
        class Killed(BaseException):
            pass

        calls = itertools.count()

        def replace_or_die(source, target, original=os.replace):
            if next(calls) == kill_at:
                raise Killed
            original(source, target)

        path = tmp_path / "run"
        with monkeypatch.context() as patch:
            patch.setattr(storage.os, "replace", replace_or_die)
            with pytest.raises(Killed):
                finish(make_trainer(path))
        assert path.exists() == (kill_at > 0)
        assert len(list(tmp_path.iterdir())) == (kill_at > 0), "no half-written file is left behind"
        assert_same_bits(outcome(finish(make_trainer(path))), outcome(finish(make_trainer())))

    def test_a_finished_run_is_not_run_again(self, tmp_path):
        first = outcome(finish(make_trainer(tmp_path / "run")))
        again = make_trainer(tmp_path / "run")
        assert list(again.run()) == []
        assert again.history.stopped == "finished"
        assert_same_bits(outcome(again), first)

    def test_a_problem_whose_configuration_holds_a_tuple_can_be_resumed(self, tmp_path):
        """JSON knows no tuples; a checkpoint must not take its own run for another."""

        @dataclass(frozen=True)
        class Labelled(Quadratics):
            labels: tuple[int, ...] = (1, 2)

        finish(make_trainer(tmp_path / "run", problem=Labelled(dim=2)))
        assert list(make_trainer(tmp_path / "run", problem=Labelled(dim=2)).run()) == []
        with pytest.raises(WeightsFileError, match="labels"):
            make_trainer(tmp_path / "run", problem=Labelled(dim=2, labels=(1, 3)))

    def test_a_setting_that_no_longer_exists_does_not_matter_where_it_was_not_used(self, tmp_path):
        path = tmp_path / "run"
        finish(make_trainer(path))
        tensors, about = storage.read_tensors(path, 1)
        about["settings"]["gone"] = None
        storage.write_tensors(path, tensors, about, version=1)
        assert list(make_trainer(path).run()) == []
        about["settings"]["gone"] = 4
        storage.write_tensors(path, tensors, about, version=1)
        with pytest.raises(WeightsFileError, match="gone 4"):
            make_trainer(path)

    def test_seconds_add_up_over_sessions(self, tmp_path):
        finish(make_trainer(tmp_path / "run"))
        earlier = make_trainer(tmp_path / "run").history.records[-1].seconds
        assert make_trainer(tmp_path / "run").seconds >= earlier > 0


@dataclass(frozen=True)
class Breaking(Problem):
    """Quadratics that are whole until sample number `sample`; those break at step `step`."""

    name: ClassVar[str] = "breaking"

    sample_number: int
    step: int
    value: float
    calls: itertools.count = field(default_factory=itertools.count)

    def sample(self, num_tasks, generator, device=None):
        whole = Quadratics(dim=2).sample(num_tasks, generator, device)
        if next(self.calls) != self.sample_number:
            return whole
        return BreakingOptimizees(whole.W, whole.y, whole.theta, self.step, self.value)

    def config(self):
        return {"name": self.name}


@dataclass(frozen=True)
class BreakingOptimizees(QuadraticTasks):
    at: int
    value: float

    def losses(self, params, step=0):
        losses = super().losses(params, step)
        if step != self.at:
            return losses
        if self.value == "gradient":  # √0, whose derivative is infinite
            return losses + (params["theta"] - params["theta"].detach()).abs().sqrt().sum(dim=1)
        return losses * self.value


class TestDivergence:
    @pytest.mark.parametrize("second_derivatives", [False, True])
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("step", [1, 4, 5, 6])
    def test_is_named_and_the_best_weights_are_kept(self, tmp_path, step, value, second_derivatives):
        """Validation draws sample 0, so sample 4 is episode 3, the second of epoch 2."""
        path, changes = tmp_path / "run", {"second_derivatives": second_derivatives}
        trainer = make_trainer(path, Breaking(4, step, value), **changes)
        with pytest.raises(MetaTrainingDivergedError) as caught:
            finish(trainer)
        assert f"loss became {value} at step {step} of episode 3 (epoch 2, meta_lr 0.01)" in str(caught.value)
        assert f"those of epoch {trainer.history.best.epoch} " in str(caught.value)
        assert [record.epoch for record in trainer.history.records] == [0, 1]

        tensors, about = checkpointed(path)
        assert [record["epoch"] for record in about["history"]] == [0, 1]
        assert all(tensor.isfinite().all() for tensor in tensors.values())
        for name, weight in trainer.optimizer.state_dict().items():
            assert weight.isfinite().all()
            assert torch.equal(weight, tensors[f"best.{name}"])

    @pytest.mark.parametrize("second_derivatives", [False, True])
    @pytest.mark.parametrize("step", [1, 3, 5])
    def test_of_a_gradient_alone_is_named_too(self, step, second_derivatives):
        trainer = make_trainer(problem=Breaking(4, step, "gradient"), second_derivatives=second_derivatives)
        with pytest.raises(MetaTrainingDivergedError, match=r"became (nan|inf) at step \d of episode 3"):
            finish(trainer)
        assert all(weight.isfinite().all() for weight in trainer.optimizer.parameters())

    def test_of_the_last_gradient_is_seen_in_the_meta_gradient(self):
        trainer = make_trainer(problem=Breaking(1, 6, "gradient"))
        with pytest.raises(MetaTrainingDivergedError, match="meta-gradient became nan at step 6 of episode 0"):
            finish(trainer)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_of_the_validation_does_not_win(self, value):
        """Validation optimizees that break at the last step: the initial weights stay the best."""
        trainer = finish(make_trainer(problem=Breaking(0, 6, value)))
        assert len(trainer.history.records) == 4
        assert trainer.history.best.epoch == 0

    def test_from_overflow_is_met_at_a_high_meta_lr(self):
        optimizer = make_optimizer(output_scale=1e30)
        with pytest.raises(MetaTrainingDivergedError, match="at step 1 of episode 0"):
            meta_train(optimizer, Quadratics(dim=2), progress=False, device="cpu", **asdict(SETTINGS))
        assert all(weight.isfinite().all() for weight in optimizer.parameters())


class TestSettings:
    @pytest.mark.parametrize(
        ("horizon", "unroll", "windows"),
        [(6, 4, [4, 2]), (6, 3, [3, 3]), (6, 6, [6]), (5, 1, [1] * 5), (100, 20, [20] * 5), (7, 3, [3, 3, 1])],
    )
    def test_the_horizon_is_cut_into_windows(self, horizon, unroll, windows):
        settings = MetaTraining(horizon=horizon, unroll=unroll)
        assert settings.windows == windows
        assert sum(settings.windows) == horizon

    @pytest.mark.parametrize(("horizon", "unroll"), [(6, 4), (6, 6), (5, 1)])
    def test_each_step_of_the_horizon_counts_once(self, horizon, unroll, monkeypatch):
        """The loss of an episode is the mean over all its steps, the shorter last window's too."""
        windows = []

        def advance(self, steps, original=MetaTrainer.run.__globals__["ReplayUnroller"].advance):
            windows.append(original(self, steps))
            return windows[-1]

        monkeypatch.setattr("l2l_kit.training.meta_training.ReplayUnroller.advance", advance)
        trainer = finish(make_trainer(horizon=horizon, unroll=unroll, epochs=1, episodes_per_epoch=1))
        losses = torch.cat([window.losses for window in windows])
        assert losses.shape == (horizon, SETTINGS.batch_size)
        assert trainer.history.records[-1].training_loss == pytest.approx(losses.mean().item(), rel=1e-6)
        assert trainer.history.about()["trained"]["meta_updates"] == len(windows)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"unroll": 7}, "unroll 7 is longer than the horizon 6; choose an unroll of at most 6"),
            *(
                ({name: value}, f"{name} must be a whole number of at least 1, got {value!r}")
                for name in ("horizon", "unroll", "epochs", "episodes_per_epoch", "batch_size", "validation_tasks")
                for value in (0, -1, 2.5, None)
            ),
            *(
                ({"meta_lr": value}, f"meta_lr must be a positive number, got {value!r}")
                for value in (0, -0.1, math.nan, math.inf, None)
            ),
            *(({"clip_norm": value}, "clip_norm must be a positive number") for value in (0, -1, math.nan)),
            ({"schedule": "linear"}, 'schedule must be "constant" or "cosine", got \'linear\''),
        ],
        ids=str,
    )
    def test_what_makes_no_sense_is_refused(self, changes, message):
        with pytest.raises(ValueError, match=message):
            replace(SETTINGS, **changes)

    @pytest.mark.parametrize(("name", "near"), [("horzon", "horizon"), ("unrol", "unroll"), ("metalr", "meta_lr")])
    def test_an_unknown_one_gives_the_near_match(self, name, near):
        with pytest.raises(UnknownNameError, match=f"unknown meta-training setting '{name}'. Did you mean '{near}'"):
            meta_train(make_optimizer(), Quadratics(dim=2), progress=False, **{name: 3})

    def test_the_schedule_anneals_to_a_hundredth(self):
        cosine = MetaTraining(epochs=10, episodes_per_epoch=10, meta_lr=0.5)
        rates = [cosine.meta_lr_at(episode) for episode in range(cosine.episodes + 1)]
        assert rates[0] == 0.5
        assert rates[50] == pytest.approx(0.5 * 0.505)
        assert rates[100] == pytest.approx(0.005)
        assert rates == sorted(rates, reverse=True)
        assert {replace(cosine, schedule="constant").meta_lr_at(episode) for episode in range(100)} == {0.5}

    def test_the_meta_gradient_is_clipped_to_the_norm(self, monkeypatch):
        norms = []

        def step(self, closure=None, original=torch.optim.Adam.step):
            norms.append(math.hypot(*(weight.grad.norm().item() for weight in self.param_groups[0]["params"])))
            return original(self)

        monkeypatch.setattr(torch.optim.Adam, "step", step)
        finish(make_trainer(clip_norm=0.01))
        assert norms == pytest.approx([0.01] * 12, rel=1e-3)
        norms.clear()
        finish(make_trainer(clip_norm=None))
        assert min(norms) > 0.02

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_gpu_that_is_not_there_is_refused(self):
        with pytest.raises(ValueError, match="torch sees no GPU"):
            meta_train(make_optimizer(), Quadratics(dim=2), device="cuda")

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
    def test_a_gpu_learns_the_same(self):
        """Draws are made on the CPU, so the losses agree to rounding."""
        on_cpu = meta_train(make_optimizer(), Quadratics(dim=2), progress=False, device="cpu", **asdict(SETTINGS))
        on_gpu = meta_train(make_optimizer(), Quadratics(dim=2), progress=False, device="cuda", **asdict(SETTINGS))
        assert on_gpu.records[0].validation_loss == pytest.approx(on_cpu.records[0].validation_loss, rel=1e-4)
        assert on_gpu.records[1].training_loss == pytest.approx(on_cpu.records[1].training_loss, rel=1e-3)


class TestCheckpointsThatAreRefused:
    @pytest.fixture
    def path(self, tmp_path):
        finish(make_trainer(tmp_path / "run", epochs=1))
        return tmp_path / "run"

    def refused(self, path, *messages, **changes):
        optimizer = changes.setdefault("optimizer", make_optimizer())
        before = {name: weight.clone() for name, weight in optimizer.state_dict().items()}
        content = path.read_bytes()
        with pytest.raises(WeightsFileError) as caught:
            make_trainer(path, **{"epochs": 1, **changes})
        for message in (str(path), *messages):
            assert message in str(caught.value)
        assert path.read_bytes() == content, "a file that is refused is left alone"
        return before, optimizer

    @pytest.mark.parametrize("part", [0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
    def test_a_truncated_one(self, path, part):
        content = path.read_bytes()
        path.write_bytes(content[: int(part * len(content))])
        before, optimizer = self.refused(path, "truncated", "make it anew")
        assert all(torch.equal(weight, before[name]) for name, weight in optimizer.state_dict().items())

    def test_one_that_lacks_its_last_byte(self, path):
        path.write_bytes(path.read_bytes()[:-1])
        self.refused(path, "truncated")

    @pytest.mark.parametrize("content", [b"\0" * 500, b"{}" * 100, b"PK\x03\x04" * 40], ids=["zeros", "text", "zip"])
    def test_one_of_another_format(self, path, content):
        path.write_bytes(content)
        self.refused(path, "not a whole safetensors file")

    def test_a_directory(self, path):
        path.unlink()
        path.mkdir()
        with pytest.raises(WeightsFileError, match="no such file"):
            make_trainer(path, epochs=1)

    def test_a_safetensors_file_of_someone_else(self, path):
        from safetensors.torch import save_file

        save_file({"weights.output.weight": torch.zeros(1, 4)}, path)
        self.refused(path, "not one of l2l_kit")

    @pytest.mark.parametrize("header", ["[]", "{}", '{"version": null}', '{"version": "new"}', "nonsense"])
    def test_one_with_a_broken_description(self, path, header):
        from safetensors.torch import save_file

        save_file({"weights.output.weight": torch.zeros(1, 4)}, path, {"l2l_kit": header})
        self.refused(path, "not one of l2l_kit")

    def test_one_of_a_newer_version(self, path):
        tensors, about = storage.read_tensors(path, 1)
        storage.write_tensors(path, tensors, about, version=2)
        self.refused(path, "format version 2", "reads up to 1", "Update l2l_kit")

    def test_one_whose_weights_have_another_shape(self, path):
        tensors, about = storage.read_tensors(path, 1)
        tensors["weights.output.weight"] = torch.zeros(1, 5)
        storage.write_tensors(path, tensors, about, version=1)
        self.refused(path, "output.weight (expected (1, 4), found (1, 5))")

    @pytest.mark.parametrize("lost", ["weights.output.weight", "best.layers.0.bias"])
    def test_one_that_lacks_weights(self, path, lost):
        tensors, about = storage.read_tensors(path, 1)
        del tensors[lost]
        storage.write_tensors(path, tensors, about, version=1)
        self.refused(path, f"{lost.partition('.')[2]} (expected", "found nothing")

    @pytest.mark.parametrize("name", [field.name for field in fields(MetaTraining)])
    def test_one_with_another_setting(self, path, name):
        other = {"schedule": "constant", "clip_norm": None, "second_derivatives": True, "meta_lr": 0.02, "shards": 5}
        value = other.get(name, getattr(SETTINGS, name) - 1 if name == "unroll" else 8)
        self.refused(path, "checkpoint of another run", f"settings had {name} ", repr(value), **{name: value})

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"problem": Quadratics(dim=3)}, "problem had dim 2 (now 3)"),
            ({"optimizer": make_optimizer(hidden_size=5)}, "optimizer had hidden_size 4 (now 5)"),
            ({"optimizer": make_optimizer(output_scale=0.1)}, "optimizer had output_scale 1.0 (now 0.1)"),
            ({"optimizer": make_optimizer(preprocessing="log-sign")}, "optimizer had preprocessing"),
            ({"optimizer": make_optimizer(seed=1)}, "optimizer had seed 0 (now 1)"),
        ],
        ids=str,
    )
    def test_one_of_another_run(self, path, changes, message):
        before, optimizer = self.refused(path, "checkpoint of another run", message, **changes)
        assert all(torch.equal(weight, before[name]) for name, weight in optimizer.state_dict().items())


class TestHistory:
    def test_about_says_what_was_done(self):
        about = finish(make_trainer()).history.about()
        assert json.loads(json.dumps(about, allow_nan=False)) == about
        assert about["problem"] == {"name": "quadratics", "dim": 2}
        assert about["training"] == asdict(SETTINGS)
        trained = about["trained"]
        assert (trained["episodes"], trained["meta_updates"], trained["stopped"]) == (6, 12, "finished")

    def test_to_frame_has_a_row_per_epoch(self):
        history = finish(make_trainer()).history
        frame = history.to_frame()
        assert list(frame.index) == [0, 1, 2, 3]
        assert list(frame["validation_loss"]) == [record.validation_loss for record in history.records]
        assert math.isnan(frame["training_loss"][0])

    def test_best_passes_over_nan(self):
        trainer = finish(make_trainer())
        records = [replace(record, validation_loss=loss) for record, loss in
                   zip(trainer.history.records, (math.nan, 3.0, math.inf, 2.0), strict=True)]  # fmt: skip
        history = History(trainer.history.problem, trainer.settings, "cpu", records)
        assert history.best.epoch == 3


def test_a_generator_that_is_dropped_leaves_the_best_weights():
    """What a widget does that is closed in the middle of a run."""
    trainer = make_trainer()
    events = trainer.run()
    next(events)
    initial = {name: weight.clone() for name, weight in trainer.optimizer.state_dict().items()}
    next(events)
    del events
    gc.collect()
    assert trainer.history.stopped == "cancelled"
    assert all(torch.equal(weight, initial[name]) for name, weight in trainer.optimizer.state_dict().items())
