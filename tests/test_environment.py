"""environment.yml, constraints.txt and pyproject.toml name the same environment."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from rattler import MatchSpec

ROOT = Path(__file__).resolve().parents[1]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
CONDA = [entry for entry in ENVIRONMENT["dependencies"] if isinstance(entry, str)]


def split(requirement: str) -> tuple[str, str]:
    name, bound = re.fullmatch(r"([A-Za-z0-9._-]+)(.*)", requirement).groups()
    return name, bound


def test_conda_packages_and_bounds_are_those_of_pyproject() -> None:
    wanted = {CONDA_NAMES.get(name, name): bound for name, bound in map(split, PROJECT["dependencies"])}
    wanted |= {"python": PROJECT["requires-python"], "pip": ""}
    assert dict(map(split, CONDA)) == wanted


def test_conda_installs_the_kit_with_its_test_tools() -> None:
    assert {"pip": ["-e .[test]"]} in ENVIRONMENT["dependencies"]


@pytest.mark.parametrize("spec", CONDA)
def test_conda_specs_are_valid(spec: str) -> None:
    assert MatchSpec(spec, strict=True).name is not None


def test_every_direct_requirement_is_pinned_within_its_bound() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if line)
    pins = {canonicalize_name(name): pin for name, pin in pins.items()}
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text
