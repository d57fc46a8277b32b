"""What TensorBoard shows of a meta-training, read back from its files."""

import itertools
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from l2l_kit import cli
from l2l_kit.optimizers import LSTMRule
from l2l_kit.problems import Quadratics
from l2l_kit.training import MetaTrainer, MetaTraining, meta_train

SETTINGS = MetaTraining(
    horizon=6, unroll=4, epochs=3, episodes_per_epoch=2, batch_size=5, validation_tasks=7, clip_norm=1e-3
)


def make_trainer(folder, checkpoint=None):
    return MetaTrainer(LSTMRule(3), Quadratics(2), SETTINGS, checkpoint=checkpoint, log_dir=folder, device="cpu")


def logged(folder):
    """By scalar, the episodes and the values."""
    events = EventAccumulator(str(folder)).Reload()
    return {name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]}


def without_clock(scalars):
    return {name: values for name, values in scalars.items() if name != "episodes_per_second"}


def test_scalars_by_episode(tmp_path):
    trainer = make_trainer(tmp_path)
    losses = [(event.episode, event.training_loss) for event in trainer.run() if event.validation_losses is None]
    found = logged(tmp_path)
    assert found["loss/training"] == [(episode, pytest.approx(loss)) for episode, loss in losses]
    validation = [record.validation_loss for record in trainer.history.records]
    assert found["loss/validation"] == [(2 * epoch, pytest.approx(loss)) for epoch, loss in enumerate(validation)]
    rates = [(episode + 1, pytest.approx(SETTINGS.meta_lr_at(episode))) for episode in range(6)]
    assert found["meta_lr"] == rates
    for name in ("meta_gradient_norm", "episodes_per_second"):
        assert [episode for episode, _ in found[name]] == [1, 2, 3, 4, 5, 6]
        assert all(value > 1e-3 for _, value in found[name])  # the norm is the one before clipping


@pytest.mark.parametrize("kill_after", [0, 1, 5, 6])
def test_a_killed_run_goes_on_in_the_same_log_without_duplicates(tmp_path, kill_after):
    list(make_trainer(tmp_path / "whole").run())
    killed = make_trainer(tmp_path / "log", tmp_path / "run").run()
    list(itertools.islice(killed, kill_after))  # neither finished nor closed before the next one begins
    list(make_trainer(tmp_path / "log", tmp_path / "run").run())
    found = logged(tmp_path / "log")
    assert without_clock(found) == without_clock(logged(tmp_path / "whole"))
    assert len(found["episodes_per_second"]) == 6


def test_the_command_logs_each_recipe_in_a_folder_of_its_own(tmp_path):
    recipe = '[problem]\nname = "quadratics"\ndim = 2\n[optimizer]\nhidden_size = 3\n[training]\n'
    sizes = {"horizon": 4, "unroll": 2, "epochs": 1, "episodes_per_epoch": 2, "batch_size": 2, "validation_tasks": 2}
    (tmp_path / "tiny.toml").write_text(recipe + "".join(f"{name} = {size}\n" for name, size in sizes.items()))
    folders = ["--data", str(tmp_path / "data"), "--log-dir", str(tmp_path / "log")]
    CliRunner().invoke(cli.app, ["train", str(tmp_path / "tiny.toml"), *folders], catch_exceptions=False)
    assert len(logged(tmp_path / "log" / "tiny")["loss/training"]) == 2


def test_without_tensorboard_one_is_told_what_to_install_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setattr(MetaTrainer, "_episode", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(ImportError, match=r"pip install 'l2l_kit\[tensorboard\]'"):
        meta_train(LSTMRule(3), Quadratics(2), SETTINGS, log_dir=tmp_path, progress=False)
    ran = CliRunner().invoke(cli.app, ["train", "quadratics", "--log-dir", str(tmp_path)])
    assert ran.exit_code == 2
    assert "l2l_kit[tensorboard]" in ran.stderr


def test_nothing_of_tensorboard_is_imported_unless_asked_for():
    code = "import sys, l2l_kit.training; sys.exit('tensorboard' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
