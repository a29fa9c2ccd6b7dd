"""The house rules of design.md, read from the source: who imports whom, what a wheel holds, what
starts without torch.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "pyro_vae": ROOT / "pyro_vae",
    "pyro_vae.models": ROOT / "models",
    "pyro_vae.guides": ROOT / "guides",
}
SOURCES = sorted(path for folder in FOLDERS.values() for path in folder.rglob("*.py"))


def imports(path: Path, everywhere: bool = True) -> Iterator[str]:
    """The absolute names that a file imports; at module level alone, outside ``if TYPE_CHECKING``,
    if not everywhere.
    """
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree)) if everywhere else tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"{'.' * node.level}{node.module or ''}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_point_one_way() -> None:
    """The engine never imports models or guides as it loads; models and guides never import each
    other; all absolute.
    """
    for path in SOURCES:
        package = path.parent.name
        refused = (".", "models", "guides")
        found = list(imports(path))
        if package in ("models", "guides"):
            refused += ("pyro_vae.guides" if package == "models" else "pyro_vae.models",)
        assert not [name for name in found if name.startswith(refused)], path
        if package not in ("models", "guides"):
            loaded = imports(path, everywhere=False)
            parts = ("pyro_vae.models", "pyro_vae.guides")
            assert not [name for name in loaded if name.startswith(parts)], path


LINE = (
    {"ground"},
    {"nn", "data", "compile", "pair"},
    {"objectives"},
    {"training"},
    {"analysis"},
    {"plots"},
    {"evaluation"},
    {"runs"},
    {"cli"},
)
"""The wings of the package: each imports only what is left of it, and itself; the ground is the
files at the root.
"""


def wing(module: str) -> str:
    names = module.split(".")
    return names[1] if len(names) > 1 and any(names[1] in layer for layer in LINE) else "ground"


def runtime_imports(path: Path) -> Iterator[str]:
    """The modules of this package that a file imports as it runs, lazy ones too."""
    tree = ast.parse(path.read_text())
    typing = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    left_out = {id(node) for block in typing for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("pyro_vae"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pyro_vae":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_a_wing_imports_only_what_is_left_of_it() -> None:
    for path in SOURCES:
        check_line(path)


def check_line(path: Path) -> None:
    """One file's imports against the line."""
    rank = {name: number for number, layer in enumerate(LINE) for name in layer}
    relative = path.relative_to(ROOT)
    if relative in (Path("pyro_vae/__init__.py"), Path("pyro_vae/__main__.py")):
        return  # the table of public names, and the console's way in
    parts = relative.parts[0] in ("models", "guides")
    own = (
        "objectives" if parts else wing(".".join(relative.with_suffix("").parts))
    )  # parts stand on pair and nn
    for name in runtime_imports(path):
        if name.startswith(("pyro_vae.models", "pyro_vae.guides")):
            continue  # the test above
        assert wing(name) == own or rank[wing(name)] < rank[own], f"{relative} imports {name}"


@pytest.mark.parametrize("name", ["models", "guides"])
def test_a_bare_import_is_refused(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode and f"from pyro_vae import {name}" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "module", ["pyro_vae", "pyro_vae.cli.entry", "pyro_vae.choices.registry", "pyro_vae.errors"]
)
def test_the_package_starts_without_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'pyro', 'matplotlib', 'arviz') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_every_public_name_is_there() -> None:
    import pyro_vae

    for name in pyro_vae.__all__:
        assert getattr(pyro_vae, name) is not None
    namespaces = {"data", "guides", "models", "objectives"}
    assert set(dir(pyro_vae)) == {*pyro_vae.__all__, *namespaces, "__version__"}  # Tab
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        pyro_vae.fitt  # noqa: B018


def test_no_module_stands_in_a_functions_place() -> None:
    """After ``import pyro_vae.x``, the attribute ``x`` of the package is that module."""
    code = """
import pkgutil, importlib, types
import pyro_vae as pv
for each in pkgutil.iter_modules(pv.__path__):
    if each.name != "__main__":
        importlib.import_module(f"pyro_vae.{each.name}")
print([name for name in pv.__all__ if isinstance(getattr(pv, name), types.ModuleType)])
print(all(map(callable, (pv.ais, pv.bdmc, pv.compare, pv.refine, pv.diagnose, pv.sbc_ranks))))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd="/", capture_output=True, text=True
    )
    assert done.stdout.split("\n")[:2] == ["[]", "True"], done.stderr


def test_the_wheel_maps_every_folder() -> None:
    """Folders are flat: a subfolder would be in an editable install and not in the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {
        folder.relative_to(ROOT / "pyro_vae")
        for folder in (ROOT / "pyro_vae").rglob("*")
        if folder.is_dir()
    }
    inside = {
        ".".join(("pyro_vae", *path.parts)) for path in packages if "__pycache__" not in path.parts
    }
    assert set(settings["packages"]) == {"pyro_vae", "pyro_vae.models", "pyro_vae.guides", *inside}
    assert settings["package-dir"]["pyro_vae.models"] == "models"
    assert settings["package-dir"]["pyro_vae.guides"] == "guides"
    for folder in (ROOT / "models", ROOT / "guides"):
        assert not [
            path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"
        ]


@pytest.mark.parametrize("folder", ["models", "guides"])
def test_every_module_is_reached_from_its_package(folder: str) -> None:
    """A part that ``__init__`` does not name would be in the wheel and in no list."""
    init = (ROOT / folder / "__init__.py").read_text()
    for path in (ROOT / folder).glob("*.py"):
        assert path.name == "__init__.py" or f"pyro_vae.{folder}.{path.stem} import" in init
