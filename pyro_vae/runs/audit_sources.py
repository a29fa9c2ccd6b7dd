"""The source that an audit copies: of the parts, and of all that they import."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pyro_vae.errors import UserError

ENGINE = ("pyro_vae.pair.runtime", "pyro_vae.pair.layouts", "pyro_vae.pair.program")
"""What whatever trains or evaluates imports."""


NAMESPACES = ("pyro_vae.models", "pyro_vae.guides")
"""Packages that import all of their parts: a copy of one imports those alone that are copied."""


@dataclass
class Sources:
    """Modules to copy: those that were added, and all that they import of their own package and of
    this one.
    """

    modules: dict[str, Path] = field(
        default_factory=dict
    )  # by the name under which the script imports them
    parts: dict[str, dict[str, str]] = field(
        default_factory=dict
    )  # of each namespace, the parts' homes

    def add(self, module: str, name: str = "") -> None:
        """A module, of which ``name`` is used, with what it imports."""
        if module in NAMESPACES:
            home = getattr(
                getattr(importlib.import_module(module), name, None), "__module__", module
            )
            if home != module:
                self.add(home, name)
            return
        package = module.rpartition(".")[0]
        if package in NAMESPACES and name:
            self.parts.setdefault(package, {})[name] = module
        if (copy := copied_as(module)) in self.modules:
            return
        path = _source_of(module)
        if path is None:
            raise UserError(
                f"no audit: the source of {module}, which the pair uses, is not in a file"
            )
        self.modules[copy] = path
        followed = {"pyro_vae", module.partition(".")[0]}
        for imported, what in _imports(module, path):
            if imported.partition(".")[0] in followed and imported != "pyro_vae":
                self.add(imported, what)

    def copies(self) -> dict[str, Path]:
        """Where each copy goes, and what it is a copy of.

        Raises:
            UserError: the engine is among them.
        """
        if engine := sorted(set(ENGINE) & self.modules.keys()):
            raise UserError(
                f"no audit: the source of this pair imports pyro_vae's own code ({engine[0]})"
            )
        return {_place(name, path): path for name, path in sorted(self.modules.items())}

    def packages(self) -> dict[str, str]:
        """The other files: an empty package each, or one that imports the parts that are copied."""
        tops = {f"{name.partition('.')[0]}/__init__.py": "" for name in self.modules if "." in name}
        for package, homes in self.parts.items():
            lines = [f"from {home} import {name}" for name, home in sorted(homes.items())]
            tops[f"{package.replace('.', '/')}/__init__.py"] = "\n".join(
                [*lines, f"__all__ = {sorted(homes)}", ""]
            )
        return tops


def _imports(module: str, path: Path) -> Iterator[tuple[str, str]]:
    """The modules that a file imports, wherever in it, and of each the name that is used."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    namespaces = {name.rpartition(".")[2]: name for name in NAMESPACES}
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((each.name, "") for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            place = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for each in node.names:
                whole = f"{place}.{each.name}"
                yield (whole, "") if _source_of(whole) else (place, each.name)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in namespaces
        ):
            yield namespaces[node.value.id], node.attr


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All but what is for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from _nodes(child)


def _source_of(module: str) -> Path | None:
    """The module's file; None where there is no such module, or it is not written in Python."""
    with suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin and spec.origin.endswith(".py"):
            return Path(spec.origin)
    return None


def copied_as(module: str) -> str:
    """The name under which the script imports a module: of a file that was named as one, the
    file's.
    """
    found = re.fullmatch(r"pyro_vae_file_[0-9a-f]{12}_(.*)", module)
    return "file_" + re.sub(r"\W", "_", found[1]) if found else module


def _place(name: str, path: Path) -> str:
    return name.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")
