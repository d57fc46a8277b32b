"""The widget in which optimizers paint: what it shows is what they do, and nothing that a page sends breaks it."""

import io
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from l2l_kit import baseline, data, zoo
from l2l_kit.evaluation import ONE_RATE, lbfgs, read_result, write_result
from l2l_kit.optimizers import LSTMRule
from l2l_kit.problems import NeuralArt
from l2l_kit.problems.neural_art import to_pictures
from l2l_kit.randomness import generator
from l2l_kit.training import rollout, trajectory
from l2l_kit.widgets import Painter, painter

RATES = {"SGD": 20.0, "NAG": 5.0, "RMSprop": 0.02, "Adam": 0.2}
NAMES = ["LSTM", "Adam", "NAG", "L-BFGS"]


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """A pretrained optimizer and sweeps that are made here, for pictures of 32 and 48 pixels."""
    monkeypatch.setenv("L2L_DATA_DIR", str(tmp_path / "cache"))
    zoo.save(LSTMRule(hidden_size=4, preprocessing="log-sign", output_scale=0.1), tmp_path / "neural-art-small")
    monkeypatch.setattr(zoo, "PRETRAINED", tmp_path)
    for size, scale in ((32, 1), (48, 2)):
        rows = [(128, "LSTM", None), (128, "L-BFGS", None)]
        rows += [(128, name, scale * rate) for name, rate in RATES.items()]
        table = pd.DataFrame(rows, columns=["step", "optimizer", "lr"]).assign(protocol=ONE_RATE)
        write_result(f"sweeps/{size}", table, {}, tmp_path)
    monkeypatch.setattr(painter, "SWEEPS", {32: "sweeps/32", 48: "sweeps/48"})
    monkeypatch.setattr(painter, "read_result", lambda name: read_result(name, tmp_path))
    return tmp_path


@pytest.fixture
def make(recorded):
    made = []

    def small(**arguments):
        widget = Painter(**{"size": 32, "steps": 3, "network": "small", **arguments})
        made.append(widget)
        return widget

    yield small
    for widget in made:
        widget.press("cancel")
        widget.close()


def lines(widget):
    return {trace.name: list(trace.y) for trace in widget.view.figure.data}


def picture(widget, name):
    """A picture that is shown, and its caption."""
    found = next(each for each in widget.view.pictures if each.name == name)
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(found.png)).convert("RGB"))).flatten(0, 1)
    return pixels, found.caption


def ran(widget):
    """What comes out of a run."""
    widget.run()
    return dict(widget.painted)


def steps_done(widget):
    return sum(map(len, widget._losses.values()))


def wait_for(done, seconds=60):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def png(mode="RGB", size=(40, 30), color=None):
    content = io.BytesIO()
    Image.new(mode, size, color if color is not None else 0).save(content, "PNG")
    return content.getvalue()


def tasks(style="mosaic", content="cat", size=32, seed=3, weights=(1.0, 1.0)):
    problem = NeuralArt(
        size=size, network="small", source="embedded", content_weight=weights[0], style_weight=weights[1]
    )
    return problem.tasks(data.content(content)[None], generator(seed, "painter"), data.style(style))


class TestPaints:
    @pytest.mark.parametrize(
        ("share", "weights", "size"), [(0.5, (1.0, 1.0), 32), (0.2, (1.6, 0.4), 32), (0.5, (1.0, 1.0), 48)]
    )
    def test_what_the_optimizers_do(self, make, share, weights, size):
        widget = make(seed=3, content="cat", style="mosaic", size=size)
        widget.move(share=share)
        painted = ran(widget)
        art = tasks(size=size, weights=weights)
        scale = {32: 1, 48: 2}[size]
        rules = {
            "LSTM": zoo.load("neural-art-small"),
            "Adam": baseline("adam", scale * 0.2),
            "NAG": baseline("nag", scale * 5.0),
        }
        expected = {name: rollout(rule, art, 3)[0].tolist() for name, rule in rules.items()}
        expected["L-BFGS"] = [point.losses.item() for point in lbfgs(art, 3)]
        for name, losses in expected.items():
            assert lines(widget)[name] == pytest.approx(losses, rel=1e-4)
            assert picture(widget, name)[1] == f"{losses[-1]:.3f}"
        *_, point = trajectory(rules["Adam"], art, 3)
        pixels = to_pictures(point.params.view(3, size, size))
        assert torch.equal(painted["Adam"], pixels)
        assert torch.equal(picture(widget, "Adam")[0], pixels.flatten(1).T)
        assert widget.state["text"].startswith("After 3 steps, from the lowest loss: ")

    def test_it_begins_with_what_the_optimizer_was_trained_on(self, make, recorded, monkeypatch):
        trained = NeuralArt("woodcut", network="small", source="embedded", content_weight=0.5, tv_weight=0.7)
        monkeypatch.setattr(zoo, "card", lambda name: {"problem": trained.config()})
        widget = make(seed=3, content="cat", steps=1)
        assert widget.values["style"] == "woodcut"
        widget.move(share=0.6)
        widget.run()
        problem = replace(trained, size=32, content_weight=0.8 * 0.5, style_weight=1.2)
        art = problem.tasks(data.content("cat")[None], generator(3, "painter"))
        expected = rollout(baseline("adam", 0.2), art, 1)[0].tolist()
        assert lines(widget)["Adam"] == pytest.approx(expected, rel=1e-4)
        monkeypatch.setattr(zoo, "card", lambda name: {"problem": replace(trained, style="gone").config()})
        assert make().values["style"] == "swirls"

    def test_the_seed_is_the_noise_to_begin_with(self, make):
        widget = make(steps=1)
        first = ran(widget)
        widget.move(seed=1)
        assert not torch.equal(ran(widget)["Adam"], first["Adam"])
        widget.move(seed=0)
        assert torch.equal(ran(widget)["Adam"], first["Adam"])

    def test_pauses_goes_on_and_is_cancelled(self, make):
        widget = make(steps=256)
        widget.press("begin")
        assert widget.state["working"], "at once, or a second press could follow"
        wait_for(lambda: steps_done(widget) > 8)
        widget.press("pause")
        wait_for(lambda: "Paused at step" in widget.state["text"])
        paused = steps_done(widget)
        widget.wait(0.5)
        assert steps_done(widget) == paused
        widget.press("pause")
        wait_for(lambda: steps_done(widget) > paused)
        widget.press("pause")
        widget.press("cancel")  # while it is paused
        widget.wait(10)
        assert widget.state["text"].startswith("Cancelled at step")
        assert not widget.state["working"]
        widget.move(steps=16)
        widget.run()
        assert {name: len(line) for name, line in lines(widget).items()} == dict.fromkeys(NAMES, 17)

    def test_a_run_that_diverges_is_said(self, make, recorded):
        table = pd.DataFrame([(128, name, 1e30) for name in RATES], columns=["step", "optimizer", "lr"])
        write_result("sweeps/32", table.assign(protocol=ONE_RATE), {}, recorded)
        widget = make(steps=4)
        widget.run()
        assert picture(widget, "NAG")[1] == "diverged"
        assert picture(widget, "LSTM")[1] != "diverged"
        assert widget.state["text"].index("LSTM") < widget.state["text"].index("NAG")

    def test_a_missing_pretrained_optimizer_is_said_and_the_others_paint(self, make, recorded):
        (recorded / "neural-art-small.safetensors").unlink()
        widget = make()
        assert sorted(ran(widget)) == ["Adam", "L-BFGS", "NAG"]
        assert "unknown pretrained optimizer 'neural-art-small'" in widget.state["errors"][0]
        assert "After 3 steps" in widget.state["text"]


def upload(widget, kind, name, content):
    """What the page sends."""
    widget._hear(None, {"upload": f"own {kind}", "name": name}, [memoryview(content)])


class TestOwnPictures:
    @pytest.mark.parametrize("kind", ["content", "style"])
    def test_an_upload_is_chosen_and_painted(self, make, kind):
        widget = make(steps=1)
        before = ran(widget)
        for color in ((9, 9, 9), (250, 10, 10)):  # the same name again is the new picture
            upload(widget, kind, "mine.png", png(color=color))
        assert widget.values[kind] == "mine.png"
        assert widget.state["text"] == f"mine.png is the {kind} now."
        pixels, caption = picture(widget, kind.capitalize())
        assert caption == "mine.png"
        assert pixels.float().mean(dim=0).tolist() == pytest.approx([250, 10, 10], abs=1)
        assert not torch.equal(ran(widget)["Adam"], before["Adam"])

    @pytest.mark.parametrize(
        ("name", "content", "reason"),
        [
            ("notes.txt", b"no picture", "not a picture that can be read"),
            ("dot.png", png(size=(1, 1)), "1 by 1 pixels are too few"),
        ],
        ids=["text", "dot"],
    )
    def test_what_is_no_picture_is_refused_in_a_sentence_that_goes_away(self, make, name, content, reason):
        widget = make()
        upload(widget, "style", name, content)
        (error,) = widget.state["errors"]
        assert error.startswith(f"{name}: {reason}")
        assert widget.values["style"] != name
        upload(widget, "style", "mine.png", png("RGBA", color=(9, 9, 9, 0)))
        assert not widget.state["errors"]

    def test_files_in_the_folders_of_the_cache_are_offered(self, make, recorded):
        for folder in ("contents", "styles"):
            (recorded / "cache" / folder).mkdir(parents=True)
            (recorded / "cache" / folder / "mine.png").write_bytes(png())
            (recorded / "cache" / folder / "broken.png").write_bytes(b"no picture")
        widget = make()
        widget.move(content="mine", style="mine")
        assert not widget.state["errors"]
        widget.move(style="broken")
        assert widget.state["errors"][0].startswith("broken.png: not a picture that can be read")
        widget.press("begin")
        widget.wait(30)
        assert widget.state["errors"][0].startswith("broken.png: not a picture that can be read")
        assert not widget.state["working"]


def test_the_picture_for_places_without_a_kernel_shows_all(make):
    widget = make(steps=1)
    widget.run()
    assert Image.open(io.BytesIO(widget.picture())).size == (6 * 114 - 4, 24 + 110)


@pytest.mark.parametrize(
    "wrong", [{"content": "dog"}, {"style": "cubism"}, {"size": 31}, {"steps": 0}, {"network": "x"}], ids=str
)
def test_what_there_is_not(make, wrong):
    with pytest.raises((ValueError, KeyError), match=r"unknown|at least 1"):
        make(**wrong)
