"""Imports point one way only, and importing the kit costs and changes nothing that it need not."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import l2l_kit

PACKAGE = Path(l2l_kit.__file__).parent

# A module may import those before it. Problems and optimizers stand side by side and know nothing of each other.
LAYERS = [
    *({name} for name in ("errors", "extras", "randomness", "tensors", "processes", "paths", "storage", "data")),
    {"problems", "optimizers"},
    *({name} for name in ("training", "evaluation", "zoo", "learned_optimizer", "static", "plots", "widgets")),
    *({name} for name in ("making", "cli", "__main__")),
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

FIGURES = {"plotly", "ipywidgets", "anywidget"}
DRAWERS = {"plots", "static", "widgets"}
BARE = {"l2l_kit", "torch", "numpy", "safetensors", "tqdm"}  # what `pip install l2l_kit` brings

MODULES = {
    ".".join(["l2l_kit", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(source):
    """Names of all that is imported, each with whether that happens at once; ruff refuses relative imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            yield from ((base + alias.name, node.col_offset == 0) for alias in node.names)


def part(name):
    """Which part of the kit a full name belongs to; None for the package itself and for other packages."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "l2l_kit" and len(pieces) > 1 and pieces[1] in RANK else None


def violations(source, module):
    """What a module imports and must not, in words."""
    mine = part(module)
    for name, at_once in imports(source):
        theirs, package = part(name), name.partition(".")[0]
        if theirs is not None and theirs != mine and RANK[theirs] >= RANK[mine]:
            yield f"{module} imports {name}, which stands above or beside it"
        if package in FIGURES and mine not in DRAWERS:
            yield f"{module} imports {name}: figures belong in {sorted(DRAWERS)}"
        elif at_once and package not in BARE | sys.stdlib_module_names and mine not in DRAWERS | {"cli"}:
            yield f"{module} imports {name} at once, which a bare GPU server lacks"


@pytest.mark.parametrize("module", [name for name in MODULES if name != "l2l_kit"])
def test_imports_point_one_way(module):
    assert part(module) is not None, f"{module} has no place in LAYERS yet; give it one"
    assert list(violations(MODULES[module].read_text(encoding="utf-8"), module)) == []


@pytest.mark.parametrize(
    ("module", "line", "wrong"),
    [
        ("problems.mnist", "from l2l_kit.training import MetaTrainer", True),
        ("training.meta_gradient", "if TYPE_CHECKING:\n    from l2l_kit.evaluation import Curves", True),
        ("evaluation.comparison", "import plotly.graph_objects as go", True),
        ("cli", "def f():\n    import ipywidgets", True),
        ("evaluation.comparison", "def f():\n    import pandas as pd", False),
        ("widgets.training", "import ipywidgets\nimport plotly.graph_objects as go\nimport pandas as pd", False),
    ],
)
def test_a_violation_is_seen(module, line, wrong):
    assert len(list(violations(line, f"l2l_kit.{module}"))) == wrong


FRESH = """
import json, os, random, sys
import numpy, torch

def state():
    return [
        torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_rng_state().tolist(), random.getstate(),
        numpy.random.get_state()[1].tolist(), torch.get_default_dtype().__repr__(), dict(os.environ),
        torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(), sys.path, os.getcwd(),
    ]

before = state()
import l2l_kit
print(json.dumps([index for index, (old, new) in enumerate(zip(before, state())) if old != new]))
"""


def test_importing_the_kit_leaves_threads_and_random_numbers_alone():
    ran = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == []


WITHOUT = """
import sys
from importlib.metadata import distribution, packages_distributions
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

base, new = set(), {"torch", "numpy", "safetensors", "tqdm"}
while new:
    base |= new
    needed = [Requirement(line) for name in new for line in distribution(name).requires or ()]
    new = {canonicalize_name(r.name) for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})} - base
for name, owners in packages_distributions().items():
    if name not in sys.modules and name != "l2l_kit" and not base & set(map(canonicalize_name, owners)):
        sys.modules[name] = None
"""
"""Blocks all packages but those that `pip install l2l_kit` brings, and what they need themselves."""

USE = """
import runpy, torch
import l2l_kit as l2l

problem, lstm = l2l.problems.Quadratics(dim=2), l2l.LSTMRule(hidden_size=2)
sizes = {"horizon": 4, "unroll": 2, "epochs": 1, "episodes_per_epoch": 1, "batch_size": 2, "validation_tasks": 2}
l2l.save(lstm, sys.argv[1], l2l.meta_train(lstm, problem, l2l.MetaTraining(**sizes), progress=False))
curves = l2l.compare({"mine": l2l.load(sys.argv[1]), "Adam": l2l.baseline("adam", lr=0.1)}, problem, steps=2)
model = torch.nn.Linear(2, 1)
optimizer = l2l.LearnedOptimizer(model.parameters(), "mnist")
model(torch.ones(2)).backward()
optimizer.step()
print("used")
for use in ("l2l.plots", "l2l.widgets", "curves.to_frame()", "l2l.tuned_baselines('quadratics')"):
    try:
        eval(use)
    except ImportError as error:
        print(use, error)
sys.argv[1:] = ["zoo"]
runpy.run_module("l2l_kit", run_name="__main__")
"""


def test_without_extras_one_can_train_and_use_an_optimizer_and_is_told_what_else_needs(tmp_path):
    command = [sys.executable, "-c", WITHOUT + USE, tmp_path / "mine.safetensors"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 2, ran.stderr
    used, *told = ran.stdout.splitlines()
    assert used == "used"
    assert [line.partition(" ")[0] for line in told] == [
        *("l2l.plots", "l2l.widgets", "curves.to_frame()", "l2l.tuned_baselines('quadratics')")
    ]
    assert all(line.endswith("is not installed, which this needs: pip install 'l2l_kit[lessons]'") for line in told)
    assert ran.stderr.startswith("error: typer is not installed")
    assert "pip install 'l2l_kit[lessons]'" in ran.stderr


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'plot'"):
        l2l_kit.plot  # noqa: B018
