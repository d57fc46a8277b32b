"""environment.yml, constraints.txt and pyproject.toml name the same environment."""

import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rattler import MatchSpec

ROOT = Path(__file__).resolve().parents[1]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]


def required(*extras: str) -> list[Requirement]:
    """What the package and these extras require, without the extras that they include."""
    lines = [*PROJECT["dependencies"], *(line for each in extras for line in PROJECT["optional-dependencies"][each])]
    return [Requirement(line) for line in lines if not line.startswith("l2l_kit")]


def test_conda_has_what_pyproject_requires_and_installs_the_kit_with_its_test_tools() -> None:
    wanted = {f"{CONDA_NAMES.get(each.name, each.name)}{each.specifier}" for each in required("lessons", "reproduce")}
    assert {each for each in CONDA if isinstance(each, str)} == {f"python{PROJECT['requires-python']}", "pip", *wanted}
    assert {"pip": ["-e .[test]"]} in CONDA
    assert all(MatchSpec(each, strict=True).name for each in CONDA if isinstance(each, str))


def test_every_direct_requirement_is_pinned_within_its_bound() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    pins = {canonicalize_name(name): pin for name, pin in (line.split("==") for line in lines)}
    for each in required(*PROJECT["optional-dependencies"]):
        assert each.specifier.contains(pins[canonicalize_name(each.name)]), each


def test_the_package_alone_needs_little_and_the_tests_need_every_extra() -> None:
    assert {each.name for each in required()} == {"torch", "numpy", "safetensors", "tqdm"}
    extras, found = PROJECT["optional-dependencies"], {"test"}
    for _ in extras:
        found |= {name for each in found for line in extras[each] for name in Requirement(line).extras & set(extras)}
    assert found == set(extras)
