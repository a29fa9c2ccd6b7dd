"""Audit: a script for stock Pyro that recomputes a run's log weights without this package.

The script imports torch, pyro and copies of the source that the model and the guide are made of,
nothing that evaluates.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.analysis.latents import by_draw
from pyro_vae.choices import lookup, registry
from pyro_vae.errors import UserError
from pyro_vae.evaluation.proposals import Guide
from pyro_vae.evaluation.traced import make_weights
from pyro_vae.files import write_atomically
from pyro_vae.pair.log_weights import prepare, refuse_unscorable
from pyro_vae.pair.terms import Site
from pyro_vae.protocols import hook

NUM_IMAGES, NUM_DRAWS = 20, 5
TOLERANCE = 1e-5
"""Of a log weight: each of float32's roundings is at most 6e-8."""

ENGINE = ("pyro_vae.pair.runtime", "pyro_vae.pair.layouts", "pyro_vae.pair.program")
"""What whatever trains or evaluates imports."""

NAMESPACES = ("pyro_vae.models", "pyro_vae.guides")
"""Packages that import all of their parts: a copy of one imports those alone that are copied."""

SCRIPT = '''\
"""Recomputes log weights of pyro_vae by stock Pyro; exits with 1 where they differ. Written by `pyro-vae audit`.

log w = log p(x, z) - log q(z | x), in nats, of {num_images} test images at {num_draws} stored draws z of each. In audit/ are copies
of the source of model and guide, and data.pt: x, z, and the log weights that pyro_vae gave them.
"""
import sys
from pathlib import Path

import pyro
import torch
from pyro import poutine

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "audit"))
sys.dont_write_bytecode = True
{imports}

WEIGHTS, TOLERANCE = "{weights}", {tolerance}  # of |log w|, as all is float32
{pair}
PROGRAMS = (1, model, {model_fields}), (-1, guide, {guide_fields})  # sign of its densities, fields that it takes
tensors = torch.load(HERE / WEIGHTS, weights_only=True, map_location="cpu")["sections"]
model.load_state_dict(tensors["model"])
guide.load_state_dict(tensors["guide"])
data = torch.load(HERE / "audit" / "data.pt", weights_only=True)


def log_weight(image, draw):
    """The log densities of all sites of both programs, of one image alone, with its latents at a stored draw."""
    total, rows = 0.0, slice(image, image + 1)
    latents = {{site: values[draw, image] for site, values in data["latents"].items()}}
    for sign, program, names in PROGRAMS:
        pyro.clear_param_store()
        given = poutine.condition(program.eval(), data=latents)
        trace = poutine.trace(given).get_trace(data["x"][rows], **{{name: data["fields"][name][rows] for name in names}})
        total += sign * trace.log_prob_sum().item()
    return total


largest, equal = 0.0, True
print(f"{{WEIGHTS}}: log w at the first of {num_draws} draws, by pyro_vae and by pyro {{pyro.__version__}}; largest difference")
for image, stored in enumerate(data["log_weights"].double()):
    with torch.no_grad():
        found = torch.tensor([log_weight(image, draw) for draw in range(len(stored))]).double()
    apart = (found - stored).abs()
    equal &= bool((apart <= TOLERANCE * stored.abs().clamp(min=1)).all())
    largest = max(largest, apart.max().item())
    print(f"image {{image:2}} {{stored[0]:15.6f}} {{found[0]:15.6f}}   {{apart.max():.1e}}")
print(f"largest difference {{largest:.1e}} nats; tolerance {{TOLERANCE:g}} of |log w|")
files = [getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith("pyro_vae.")]
assert all(str(file or HERE).startswith(str(HERE)) for file in files), "an installed pyro_vae was imported, no copy"
sys.exit(0 if equal else "a log weight differs by more than that")
'''


@dataclass(frozen=True)
class Audit:
    """What was written."""

    script: Path
    copies: Mapping[Path, Path]  # each copy's place in the run, and what it is a copy of


def write_audit(
    folder: Path,
    weights: Path,
    model: Any,
    guide: Any,
    calls: Sequence[registry.Call],
    x: Any,
    fields: Mapping[str, Any],
    seed: int,
) -> Audit:
    """Write ``audit.py``, and what it needs besides the checkpoint, into a run's folder.

    Args:
        weights: the checkpoint that model and guide were loaded from.
        calls: how they and their parts were constructed.
        x: a few images, ``(N, *event_shape)``, and ``fields``, N rows each.
        seed: of the draws.

    Raises:
        UserError: a pair whose log weights can't be had by tracing its two programs at given
            latents, or without this engine.
    """
    data, names = _data(model, guide, x, fields, seed)
    writer = _Writer(calls)
    pair = writer.statements({"model": model, "guide": guide})
    sources = Sources()
    for part in (
        *writer.classes.values(),
        *(call.part for call in calls),
    ):  # a part may construct its own parts
        sources.add(part.__module__, part.__name__)
    copies = sources.copies()
    beside = folder / "audit"
    text = SCRIPT.format(
        num_images=len(data["x"]),
        num_draws=NUM_DRAWS,
        imports="\n".join(writer.imports()),
        pair="\n".join(pair),
        weights=weights.relative_to(folder).as_posix(),
        model_fields=names["model"],
        guide_fields=names["guide"],
        tolerance=TOLERANCE,
    )
    contents = {beside / name: words.encode() for name, words in sources.packages().items()}
    contents |= {beside / name: path.read_bytes() for name, path in copies.items()}
    stored = io.BytesIO()
    torch.save(data, stored)
    for path, content in {
        **contents,
        beside / "data.pt": stored.getvalue(),
        folder / "audit.py": text.encode(),
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return Audit(folder / "audit.py", {beside / name: path for name, path in copies.items()})


def _data(
    model: Any, guide: Any, x: Any, fields: Mapping[str, Any], seed: int
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The images, draws and log weights, and which fields each program takes."""
    if not hook(guide, "amortized"):
        raise UserError(
            f"the guide {type(guide).__name__} has no q(z | x) of test images, so there are no "
            "log weights to audit"
        )
    pair, images, named = prepare(model, guide, x, dict(fields), NUM_DRAWS)
    structure = pair.structure(images, named, scored=False)
    refuse_unscorable(pair, images, named)
    if structure.summed:
        raise UserError(
            f"{', '.join(structure.summed)} is summed out, which stock Pyro's trace does not "
            "do, so this pair can't be audited"
        )
    if structure.own_draws_only:
        raise UserError(
            f"the guide scores site {structure.own_draws_only[0]!r} only at its own last draw, "
            "not at stored draws, so this pair can't be audited"
        )
    with pair.measuring(images.device):
        first, others = (
            (images, named),
            (images.flip(0), {name: value.flip(0) for name, value in named.items()}),
        )
        size = len(images), NUM_DRAWS, NUM_DRAWS
        weights, _ = make_weights(
            pair, Guide(), "graph", *size, first, others
        )  # as log_marginal scores
        torch.manual_seed(seed)
        drawn = pair.run(*first, NUM_DRAWS, layout="repeat").guide
        torch.manual_seed(seed)  # the same draws
        log_weights = weights(*first)(NUM_DRAWS)
    latents = {name: _alone(site) for name, site in drawn.items()}
    taken = {
        role: [n for n in program.select(named) if n != "index" or program.wants(n)]
        for role, program in (("model", pair.model), ("guide", pair.guide))
    }
    kept = {name: named[name] for name in {*taken["model"], *taken["guide"]}}
    return {
        "x": images,
        "fields": kept,
        "latents": latents,
        "log_weights": log_weights.T.contiguous(),
    }, taken


def _alone(site: Site) -> Tensor:
    """Draws ``(K, B, …)`` of K·B rows, each in the shape that it has where its image is the only
    one.
    """
    values = by_draw(site.rows(), NUM_DRAWS).unsqueeze(2)
    return values.movedim(2, 2 + len(site.fn.batch_shape) + site.dim).contiguous()


# ------------------------------------------------------------------------------------------
# The pair as Python


class _Writer:
    """Objects as the calls that made them, each class under a name of its own."""

    def __init__(self, calls: Sequence[registry.Call]) -> None:
        self._calls = {id(call.made): call for call in calls}
        self.classes: dict[str, type] = {}
        self._names: dict[int, str] = {}  # of objects that have a statement
        self._statements: list[str] = []

    def statements(self, objects: Mapping[str, Any]) -> list[str]:
        """An assignment for each of the objects, and before it for those that several share."""
        used: dict[int, list[str]] = {}
        for value in objects.values():
            self._count(value, used)
        shared = {i: names[0] for i, names in used.items() if len(names) > 1}
        wanted = shared | {id(value): name for name, value in objects.items()}
        for value in objects.values():
            self._write(value, wanted)
        return self._statements

    def imports(self) -> list[str]:
        """A line for each class."""
        lines = []
        for name, part in self.classes.items():
            alias = "" if name == part.__name__ else f" as {name}"
            lines.append(f"from {_copied_as(part.__module__)} import {part.__name__}{alias}")
        return sorted(lines)

    def _count(self, value: Any, used: dict[int, list[str]], name: str = "") -> None:
        if (call := self._calls.get(id(value))) is None:
            return
        used.setdefault(id(value), []).append(name)
        if len(used[id(value)]) == 1:
            for argument, inner in call.arguments.items():
                for each in inner if isinstance(inner, list | tuple) else [inner]:
                    self._count(each, used, argument)

    def _write(self, value: Any, wanted: Mapping[int, str]) -> str:
        """An expression; an object that has a name is assigned first."""
        if id(value) in self._names:
            return self._names[id(value)]
        if (call := self._calls.get(id(value))) is None:
            return self._plain(value, wanted)
        arguments = [
            f"{name}={self._argument(name, each, wanted)}" for name, each in call.arguments.items()
        ]
        text = f"{self._class(call.part)}({', '.join(arguments)})"
        if id(value) not in wanted:
            return text
        self._names[id(value)] = wanted[id(value)]
        self._statements.append(f"{wanted[id(value)]} = {text}")
        return wanted[id(value)]

    def _argument(self, name: str, value: Any, wanted: Mapping[int, str]) -> str:
        if name == "net" and isinstance(value, str):
            return self._class(lookup.resolve("net", value))
        return self._write(value, wanted)

    def _plain(self, value: Any, wanted: Mapping[int, str]) -> str:
        match value:
            case type():
                return self._class(value)
            case float() if not isfinite(value):
                return f"float({str(value)!r})"
            case None | bool() | int() | float() | str():
                return repr(value)
            case list():
                return f"[{', '.join(self._write(each, wanted) for each in value)}]"
            case tuple():  # a torch.Size too
                inner = ", ".join(self._write(each, wanted) for each in value)
                return f"({inner},)" if len(value) == 1 else f"({inner})"
        raise UserError(
            f"no audit: the pair has a {type(value).__name__} that was not built from the run's "
            "options. Name model and guide as classes which build what they need"
        )

    def _class(self, part: type) -> str:
        for name, known in self.classes.items():
            if known is part:
                return name
        name, number = part.__name__, 2
        while name in self.classes:
            name, number = f"{part.__name__}{number}", number + 1
        self.classes[name] = part
        return name


# ------------------------------------------------------------------------------------------
# The source that it needs


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
        if (copy := _copied_as(module)) in self.modules:
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
        loaded = sys.modules.get(module)
        spec = importlib.util.find_spec(module) if loaded is None else None
        origin = getattr(loaded, "__file__", None) if loaded is not None else spec and spec.origin
        if origin and origin.endswith(".py"):
            return Path(origin)
    return None


def _copied_as(module: str) -> str:
    """The name under which the script imports a module: of a file that was named as one, the
    file's.
    """
    found = re.fullmatch(r"pyro_vae_file_[0-9a-f]{12}_(.*)", module)
    return "file_" + re.sub(r"\W", "_", found[1]) if found else module


def _place(name: str, path: Path) -> str:
    return name.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")
