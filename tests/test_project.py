"""The rules of the project: who may import whom, the public names, the wheel."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import elastic_jax

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "elastic_jax": {"jax", "optax", "chex", "numpy", "elastic_jax"},
    "theory": {"sympy", "numpy", "theory"},
}
ON_RAY = {"actors.py", "cluster.py"}  # which import it once they need it


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports(package):
    files = sorted((ROOT / package).glob("**/*.py"))
    assert files
    for path in files:
        outside = imported(path) - MAY_IMPORT[package] - set(sys.stdlib_module_names)
        outside -= {"ray"} if path.name in ON_RAY else set()
        assert not outside, f"{path.name} imports {outside}"


@pytest.mark.slow
def test_what_few_need_is_imported_late():
    code = "import sys, elastic_jax.cluster; print(sorted({'ray', 'flax'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "[]\n"


def test_public_names():
    assert len(elastic_jax.__all__) <= 45
    for name in elastic_jax.__all__:
        assert getattr(elastic_jax, name).__doc__, name


def test_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == elastic_jax.__version__
    assert f"## {elastic_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_wheel_holds_the_two_packages(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"elastic_jax", "theory"}


def test_pins_name_no_host():
    for name in ("constraints.txt", "pyproject.toml", "Makefile", ".ci/run", "tools/make_venv"):
        assert "://" not in (ROOT / name).read_text(), name
