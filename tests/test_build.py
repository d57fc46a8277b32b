"""Building: with $L2L_HOME the kit reads what was made there, and nothing that comes with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import RECIPE, SWEEP

from l2l_kit import build
from l2l_kit.errors import UnknownNameError

SCRIPT = """
import json
from workers import forked
import l2l_kit as l2l
from l2l_kit.evaluation import read_result
from l2l_kit.making import work

work.get_context = forked
assert l2l.zoo.names() == []
l2l.build(["tiny.toml"], {"quadratics": {"steps": [3], "num_tasks": 4, "rates": 1}}, ["small.toml"], device="cpu")
refused = []
for read, name in ((l2l.load, "quadratics"), (l2l.tuned_baselines, "mnist"), (read_result, "sweeps/cifar10")):
    try:
        read(name)
    except (ValueError, FileNotFoundError):
        refused.append(True)
print(json.dumps({
    "names": l2l.zoo.names(),
    "baselines": sorted(l2l.tuned_baselines("quadratics")),
    "swept": sorted(set(read_result("sweeps/small")["optimizer"])),
    "refused": len(refused),
}))
"""


@pytest.mark.timeout(600)
def test_what_is_made_is_all_that_there_is(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    (tmp_path / "small.toml").write_text(SWEEP.replace('"quadratics"', '"tiny-unroll5"', 1).replace("[2, 3, 4]", "[2]"))
    tests = Path(__file__).resolve().parent
    environment = {**os.environ, "L2L_HOME": "home", "L2L_JOBS": "2"}
    environment["PYTHONPATH"] = f"{tests.parent}{os.pathsep}{tests}"
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=550
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    said = json.loads(ran.stdout.splitlines()[-1])
    assert said == {
        "names": ["tiny-unroll2", "tiny-unroll5"],
        "baselines": ["Adam", "NAG", "RMSprop", "SGD"],
        "swept": ["Adam", "LSTM", "SGD"],
        "refused": 3,
    }


def test_what_comes_with_the_kit_is_not_overwritten() -> None:
    with pytest.raises(ValueError, match="set L2L_HOME"):
        build(["quadratics"])


def test_mistakes_are_named_before_anything_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("l2l_kit.making.build.HOME", tmp_path)
    for wrong in ({"recipes": ["quadratic"]}, {"tunings": {"quadratic": {}}}, {"sweeps": ["cifar"]}):
        with pytest.raises(UnknownNameError):
            build(**wrong)
    assert list(tmp_path.iterdir()) == []
