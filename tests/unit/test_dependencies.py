"""The declared dependencies are those that the code imports."""

import configparser
import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from tests.support.imports import imported_modules
from tests.support.paths import ROOT

from esvit_hf.common.yaml_text import read_yaml

DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Of modules that are called differently."""
# What others import for us, and tools that are run.
NOT_IMPORTED = {
    "build": "make wheel-smoke",
    "codespell": "make lint",
    "onnx": "torch.onnx",
    "tensorboard": "accelerate",
    "mypy": "make types",
    "pre-commit": "contributors",
    "pre-commit-hooks": "pre-commit",
    "pytest-xdist": "make test",
    "ruff": "make lint",
    "types-pyyaml": "mypy",
    "types-tqdm": "mypy",
}
OURS = {"esvit_hf", "tests", "benchmarks", "studies", "fine_tune"}
# Used for image processors of transformers that cannot be loaded without it.
OF_PROCESSORS = {"torchvision"}
# Of tests with the marker `tracking`, which run where both are installed.
TRACKERS = {"mlflow", "wandb"}


def declared(section: str, *options: str) -> set[str]:
    """Names of distributions in setup.cfg, without versions."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = "\n".join(config[section][option] for option in options).split()
    return {re.split(r"[\[<>=]", line)[0].lower() for line in lines}


def imported(*folders: str) -> set[str]:
    """Names of distributions that the files below some folders import."""
    names = _top_level(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return {DISTRIBUTIONS.get(name, name) for name in names - OURS - set(sys.stdlib_module_names)}


def _top_level(paths: Iterable[Path]) -> set[str]:
    modules = {module for path in paths for module in imported_modules(path)}
    return {module.split(".")[0] for module in modules} - {""}


# What pyproject.toml requires to build the package.
BUILD = {"setuptools"}
REQUIRED = declared("options", "install_requires")
OPTIONAL = declared("options.extras_require", "plots", "tracking", "onnx", "tiff", "dicom", "demo")
DEVELOPMENT = declared("options.extras_require", "dev")


def test_every_file_names_the_same_versions_of_python() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lowest = config["options"]["python_requires"].removeprefix(">=")
    classifiers = re.findall(
        r"Python :: (3\.\d+)$", config["metadata"]["classifiers"], re.MULTILINE
    )
    matrix = read_yaml((ROOT / ".github/workflows/ci.yaml").read_text())["jobs"]["test"]
    assert matrix["strategy"]["matrix"]["python"] == classifiers
    assert matrix["strategy"]["matrix"]["include"] == [{"python": lowest, "versions": "oldest"}]
    assert config["mypy"]["python_version"] == lowest == classifiers[0]
    assert (
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["target-version"]
        == f"py{lowest.replace('.', '')}"
    )
    for page in ("README.md", "docs/quickstart.md"):
        assert f"Python {lowest} or newer" in (ROOT / page).read_text()


def test_the_package_declares_what_it_imports() -> None:
    used = imported("src")
    assert used - REQUIRED - OPTIONAL == OF_PROCESSORS
    assert REQUIRED - used == set()
    assert OPTIONAL - used - set(NOT_IMPORTED) == set()


def test_development_declares_what_tests_and_measurements_import() -> None:
    used = imported("tests", "benchmarks", "studies", "examples")
    assert used - REQUIRED - OPTIONAL - DEVELOPMENT - BUILD == TRACKERS
    assert DEVELOPMENT - used - set(NOT_IMPORTED) == set()
