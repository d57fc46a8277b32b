"""The widget in which optimizers paint: what it shows is what they do, and nothing that a page sends breaks it."""

import io
import re
import sys
from dataclasses import replace
from datetime import UTC, datetime

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
from l2l_kit.widgets import painter

RATES = {"SGD": 20.0, "NAG": 5.0, "RMSprop": 0.02, "Adam": 0.2}
NAMES = ["LSTM", "Adam", "NAG", "L-BFGS"]


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """A pretrained optimizer and sweeps that are made here, for pictures of 32 and 48 pixels."""
    monkeypatch.setenv("L2L_DATA_DIR", str(tmp_path / "cache"))
    zoo.save(LSTMRule(hidden_size=4, preprocessing="log-sign", output_scale=0.1), tmp_path / "neural-art-small")
    monkeypatch.setattr(zoo, "PRETRAINED", tmp_path)
    module = sys.modules[painter.__module__]
    for size, scale in ((32, 1), (48, 2)):
        rows = [(128, "LSTM", None), (128, "L-BFGS", None)]
        rows += [(128, name, scale * rate) for name, rate in RATES.items()]
        table = pd.DataFrame(rows, columns=["step", "optimizer", "lr"]).assign(protocol=ONE_RATE)
        write_result(f"sweeps/{size}", table, {}, tmp_path)
    monkeypatch.setattr(module, "SWEEPS", {32: "sweeps/32", 48: "sweeps/48"})
    monkeypatch.setattr(module, "read_result", lambda name: read_result(name, tmp_path))
    return tmp_path


@pytest.fixture
def make(recorded):
    made = []

    def small(**arguments):
        widget = painter(**{"size": 32, "steps": 3, "network": "small", **arguments})
        made.append(widget)
        return widget

    yield small
    for widget in made:
        widget.close()
        widget.wait(30)


def text(widget):
    return re.sub("<[^>]+>", "", widget.status.value).replace("&#x27;", "'").replace("&quot;", '"')


def lines(widget):
    return {trace.name: list(trace.y) for trace in widget.figure.data}


def pixels(canvas):
    return torch.from_numpy(np.array(Image.open(io.BytesIO(canvas.value)).convert("RGB"))).flatten(0, 1)


def file(name, content):
    about = {"name": name, "type": "", "size": len(content), "last_modified": datetime(2026, 1, 1, tzinfo=UTC)}
    return ({**about, "content": memoryview(content)},)


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
        widget.share.value = share
        painted = widget.run()
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
            assert f"{losses[-1]:.3f}" in widget._captions[name].value
        *_, point = trajectory(rules["Adam"], art, 3)
        picture = to_pictures(point.params.view(3, size, size))
        assert torch.equal(painted["Adam"], picture)
        assert torch.equal(pixels(widget.canvases["Adam"]), picture.flatten(1).T)
        assert text(widget).startswith("After 3 steps, from the lowest loss: ")

    def test_it_begins_with_what_the_optimizer_was_trained_on(self, make, recorded, monkeypatch):
        trained = NeuralArt("woodcut", network="small", source="embedded", content_weight=0.5, tv_weight=0.7)
        monkeypatch.setattr(zoo, "card", lambda name: {"problem": trained.config()})
        widget = make(seed=3, content="cat", steps=1)
        assert widget.style.value == "woodcut"
        widget.share.value = 0.6
        widget.run()
        problem = replace(trained, size=32, content_weight=0.8 * 0.5, style_weight=1.2)
        art = problem.tasks(data.content("cat")[None], generator(3, "painter"))
        expected = rollout(baseline("adam", 0.2), art, 1)[0].tolist()
        assert lines(widget)["Adam"] == pytest.approx(expected, rel=1e-4)
        monkeypatch.setattr(zoo, "card", lambda name: {"problem": replace(trained, style="gone").config()})
        assert make().style.value == "swirls"

    def test_in_the_background(self, make):
        widget = make()
        widget.paint.click()
        assert widget.paint.disabled
        assert not widget.cancel.disabled
        widget.wait(60)
        assert {name: len(line) for name, line in lines(widget).items()} == dict.fromkeys(NAMES, 4)
        assert widget.bar.value == widget.bar.max
        assert widget.bar.bar_style == "success"
        assert not widget.paint.disabled
        assert widget.cancel.disabled

    def test_the_seed_is_the_noise_to_begin_with(self, make):
        widget = make(steps=1)
        first = widget.run()
        widget.seed.value = 1
        second = widget.run()
        assert not torch.equal(first["Adam"], second["Adam"])
        widget.seed.value = 0
        assert torch.equal(widget.run()["Adam"], first["Adam"])

    def test_pauses_goes_on_and_is_cancelled(self, make):
        widget = make(steps=256)
        widget.start()
        while sum(map(len, widget._losses.values())) < 8:
            widget.wait(0.05)
        widget.pause.value = True
        widget.wait(0.5)
        paused = sum(map(len, widget._losses.values()))
        widget.wait(0.5)
        assert sum(map(len, widget._losses.values())) == paused
        assert "Paused at step" in text(widget)
        widget.pause.value = False
        while sum(map(len, widget._losses.values())) < paused + 8:
            widget.wait(0.05)
        widget.pause.value = True
        widget.cancel.click()  # while it is paused
        widget.wait(10)
        assert not widget._job.running
        assert text(widget) == "Cancelled."
        assert not widget.paint.disabled
        widget.steps.value = 16
        widget.run()
        assert {len(line) for line in lines(widget).values()} == {17}

    def test_a_run_that_diverges_is_said(self, make, recorded):
        table = pd.DataFrame([(128, name, 1e30) for name in RATES], columns=["step", "optimizer", "lr"])
        write_result("sweeps/32", table.assign(protocol=ONE_RATE), {}, recorded)
        widget = make(steps=4)
        widget.run()
        assert "diverged" in widget._captions["NAG"].value
        assert "diverged" not in widget._captions["LSTM"].value
        assert text(widget).index("LSTM") < text(widget).index("NAG")

    def test_a_missing_pretrained_optimizer_is_said_and_the_others_paint(self, make, recorded):
        (recorded / "neural-art-small.safetensors").unlink()
        widget = make()
        assert sorted(widget.run()) == ["Adam", "L-BFGS", "NAG"]
        assert "unknown pretrained optimizer 'neural-art-small'" in text(widget)
        assert "After 3 steps" in text(widget)


class TestOwnPictures:
    @pytest.mark.parametrize("kind", ["content", "style"])
    def test_an_upload_is_chosen_and_painted(self, make, kind):
        widget = make(steps=0 + 1)
        before = widget.run()
        upload, choice = getattr(widget, f"own_{kind}"), getattr(widget, kind)
        upload.value = file("mine.png", png(color=(250, 10, 10)))
        assert choice.value == "mine.png"
        assert f"mine.png is the {kind} now." in text(widget)
        assert upload.value == ()
        shown = pixels(widget._looks[kind])
        assert shown.float().mean(dim=0).tolist() == pytest.approx([250, 10, 10], abs=1)
        assert not torch.equal(widget.run()["Adam"], before["Adam"])

    def test_the_same_name_again_is_the_new_picture(self, make):
        widget = make()
        for level in (10, 200):
            widget.own_content.value = file("mine.png", png(color=(level, level, level)))
        assert pixels(widget._looks["content"]).float().mean().item() == pytest.approx(200, abs=1)
        assert widget.content.options.count("mine.png") == 1

    @pytest.mark.parametrize(
        ("name", "content", "reason"),
        [
            ("notes.txt", b"no picture", "not a picture that can be read"),
            ("cut.png", png(size=(200, 200), color=(1, 2, 3))[:60], "not a picture that can be read"),
            ("dot.png", png(size=(1, 1)), "1 by 1 pixels are too few"),
            ("empty.png", b"", "not a picture that can be read"),
        ],
        ids=["text", "cut", "dot", "empty"],
    )
    def test_what_is_no_picture_is_refused_in_a_sentence(self, make, name, content, reason):
        widget = make()
        widget.own_style.value = file(name, content)
        assert name in text(widget)
        assert reason in text(widget)
        assert 'role="alert"' in widget.status.value
        assert name not in widget.style.options
        assert widget.run()  # and it goes on

    @pytest.mark.parametrize(
        "content",
        [png("P"), png("LA"), png("I;16"), png("RGBA", color=(9, 9, 9, 0)), png(size=(3000, 20))],
        ids=["palette", "grey, transparent", "16 bits", "transparent", "long"],
    )
    def test_unusual_pictures_are_taken(self, make, content):
        widget = make(steps=1)
        widget.own_content.value = file("odd.png", content)
        assert widget.content.value == "odd.png"
        assert widget.run()

    def test_files_in_the_folders_of_the_cache_are_offered(self, make, recorded):
        for folder in ("contents", "styles"):
            (recorded / "cache" / folder).mkdir(parents=True)
            (recorded / "cache" / folder / "mine.png").write_bytes(png())
            (recorded / "cache" / folder / "broken.png").write_bytes(b"no picture")
        widget = make()
        widget.content.value = widget.style.value = "mine"
        assert "alert" not in widget.status.value
        widget.style.value = "broken"
        assert "broken.png: not a picture that can be read" in text(widget)
        widget.start()
        widget.wait(30)
        assert "broken.png: not a picture that can be read" in text(widget)
        assert widget.bar.bar_style == "danger"


def test_the_picture_for_places_without_a_kernel_shows_all(make):
    widget = make(steps=1)
    widget.run()
    bundle = widget._repr_mimebundle_()
    assert "image/png" in bundle
    width, height = Image.open(io.BytesIO(widget._picture())).size
    assert width == 6 * 100 - 4
    assert height == 24 + 96


@pytest.mark.parametrize(
    "wrong", [{"content": "dog"}, {"style": "cubism"}, {"size": 31}, {"steps": 0}, {"network": "x"}]
)
def test_wrong_arguments_are_refused(make, wrong):
    with pytest.raises(ValueError, match=r"unknown|at least 1"):
        make(**wrong)
