"""What is shipped: declared dependencies are the imported ones, each test file is alone, and the
built distributions work where the repository is not.
"""

from __future__ import annotations

import ast
import email
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

import pyro_vae

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = {"pyro_vae": "pyro_vae", "models": "pyro_vae/models", "guides": "pyro_vae/guides"}
PYTHON = sorted(path for top in (*FOLDERS, "examples") for path in (ROOT / top).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
NAMES = {"PIL": "pillow", "sklearn": "scikit-learn", "pyro": "pyro-ppl", "tomli_w": "tomli-w"}
"""The distributions whose module has another name."""
OPTIONAL = {"arviz_stats", "distributed"}
"""Imported where they are installed: part of ArviZ 1.x, and the extra cluster."""
PIP = [sys.executable, "-m", "pip"]
BUILD = "import sys; from setuptools import build_meta as b; b.build_{}(sys.argv[1])"


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All nodes of a file's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text())))


def imports(path: Path) -> Iterator[str]:
    """The absolute names of all modules that a file imports."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def changed(path: Path) -> Iterator[str]:
    """What a file assigns to, and the objects whose methods it calls, as written."""
    for node in nodes(path):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func.value)
        elif isinstance(node, ast.Assign):
            yield from map(ast.unparse, node.targets)
        elif isinstance(node, ast.AugAssign):
            yield ast.unparse(node.target)


def needed(paths: Sequence[Path]) -> set[str]:
    """The distributions of others that these files import."""
    own = {*FOLDERS, "tests", "benchmarks", *sys.stdlib_module_names}
    tops = {name.split(".")[0] for path in paths for name in imports(path)} - own - OPTIONAL
    return {NAMES.get(top, top) for top in tops}


def declared(*extras: str) -> set[str]:
    """The names of the dependencies, and of these extras."""
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][e] for e in extras)]
    return {re.split(r"[<>=]", requirement)[0] for each in lists for requirement in each}


def test_dependencies_are_what_is_imported() -> None:
    """All of the package's, no more; those of tests and benchmarks are in their extras."""
    assert needed(PYTHON) == declared()
    assert needed(TESTS) <= declared("test")
    assert needed(BENCHMARKS) <= declared("bench")


def test_the_version_is_pyprojects_alone() -> None:
    """As it was when this was installed, and in no source file."""
    assert pyro_vae.__version__ == metadata.version("pyro-vae") == PROJECT["version"]
    texts = [path.read_text() for path in PYTHON]
    assert not [text for text in texts if re.search(r"^__version__ *=", text, re.MULTILINE)]


def test_tests_import_nothing_from_each_other() -> None:
    """What several share is in `tests.support`; nothing changes `sys.path` in this process."""
    for path in TESTS:
        own = {f"tests.{path.parent.name}", "tests.support"}
        for name in imports(path):
            top = name.split(".")
            assert top[0] not in ("", "tests") or ".".join(top[:2]) in own, f"{path}: {name}"
            assert not top[-1].startswith("test_"), f"{path}: {name}"
        if "sys.path" in path.read_text():
            assert "sys.path" not in changed(path), path


# ------------------------------------------------------------------------------------------
# The distributions


def call(*command: str | Path, cwd: Path, **environment: str) -> str:
    """The output of a command, which must end well."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a command's environment needs so that it finds the build's tools."""
    folder = tmp_path_factory.mktemp("tools")
    asked = [*PIP, "install", "--quiet", "--target", str(folder), "setuptools>=77"]
    got = subprocess.run(asked, capture_output=True, text=True)
    if got.returncode:
        pytest.skip(f"setuptools 77 can't be installed here: {got.stderr.strip()[-200:]}")
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def source(tools: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    work = tmp_path_factory.mktemp("source")
    call(sys.executable, "-c", BUILD.format("sdist"), work, cwd=ROOT, **tools)
    (archive,) = work.glob("*.tar.gz")
    with tarfile.open(archive) as stored:
        stored.extractall(work, filter="data")
    return work / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(source: Path, tools: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built of it."""
    work = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-c", BUILD.format("wheel"), work, cwd=source, **tools)
    (found,) = work.glob("*.whl")
    return found


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of a new environment, to which this one lends its dependencies, not its
    pyro_vae.
    """
    folder = tmp_path / "environment"
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=tmp_path)
    lent = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text("\n".join(lent))
    return folder / "bin" / "python"


@pytest.mark.slow
def test_the_wheel_is_the_package(wheel: Path) -> None:
    """Every module is in it, and nothing else; its metadata are pyproject's."""
    expected = {"pyro_vae/py.typed"}
    for folder, package in FOLDERS.items():
        every = ("*.py", "*.pyi", "*.py.txt")
        for file in (path for each in every for path in (ROOT / folder).rglob(each)):
            expected.add(f"{package}/{file.relative_to(ROOT / folder).as_posix()}")
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == expected
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        about = email.message_from_bytes(archive.read(name))
    assert about["Version"] == PROJECT["version"]
    assert about["Author"] == PROJECT["authors"][0]["name"]
    assert about.get_all("Classifier") == PROJECT["classifiers"]


@pytest.mark.slow
def test_the_wheel_is_used_from_another_folder(wheel: Path, python: Path, tmp_path: Path) -> None:
    """Installed in an environment of its own, with all that it requires: the command line, and a
    run of it loaded.
    """
    pip = [*PIP, "--python", python]
    call(*pip, "install", "--quiet", "--no-deps", wheel, cwd=tmp_path)
    checked = subprocess.run([*map(str, pip), "check"], capture_output=True, text=True)
    assert "pyro-vae" not in checked.stdout, checked.stdout
    short = ["--steps", "5", "--num-samples", "5", "--eval-images", "20", "--quiet"]
    train = ["train", "--device", "cpu", "--no-pictures", "--json", "--out", "run"]
    assert '"mean"' in call(python.with_name("pyro-vae"), *train, *short, cwd=tmp_path)
    code = """
import pyro_vae
from pyro_vae import models
model, *_ = pyro_vae.load("run")
print(pyro_vae.__version__, pyro_vae.__file__, models.__file__)
"""
    version, *files = call(python, "-c", code, cwd=tmp_path).split()
    assert version == PROJECT["version"]
    assert len(files) == 2 and all(file.startswith(f"{python.parents[1]}/") for file in files)


@pytest.mark.slow
def test_the_source_distribution_is_the_repository(source: Path) -> None:
    """It has every file that git has."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not in a git repository")
    there = [name for name in listed.stdout.split() if (ROOT / name).exists()]
    assert not [name for name in there if not (source / name).exists()]


@pytest.mark.slow
def test_tests_run_from_the_source_distribution(
    source: Path, python: Path, tools: dict[str, str]
) -> None:
    """Installed from it: everyday tests of the ground, of a wing and of the parts."""
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "-e", "."]
    call(*PIP, "--python", python, *install, cwd=source, **tools)
    files = ["tests/test_architecture.py", "tests/nn", "tests/models/test_priors.py"]
    options = ["-m", "not slow", "-q", "-p", "no:cacheprovider"]
    done = call(python, "-m", "pytest", *files, *options, cwd=source)
    assert " passed" in done
    where = (
        "import pyro_vae; from pyro_vae import models; print(pyro_vae.__file__, models.__file__)"
    )
    files = call(python, "-c", where, cwd=source.parent).split()
    assert len(files) == 2 and all(file.startswith(f"{source}/") for file in files)
