"""Audit: a script for stock Pyro that recomputes a run's log weights without this package.

The script imports torch, pyro and copies of the source that the model and the guide are made of,
nothing that evaluates.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from math import isfinite
from pathlib import Path
from string import Template
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
from pyro_vae.runs.audit_sources import Sources, copied_as
from pyro_vae.runs.command_options import Audit
from pyro_vae.runs.run import Run
from pyro_vae.runs.run_data import trained
from pyro_vae.training import checkpoint_files

NUM_IMAGES, NUM_DRAWS = 20, 5
TOLERANCE = 1e-5
"""Of a log weight: each of float32's roundings is at most 6e-8."""


SCRIPT = Template(Path(__file__).with_name("audit.py.txt").read_text(encoding="utf-8"))


def write_audit(run: Run, options: Audit, tell: Callable[[str], None]) -> dict[Path, Path]:
    """Write ``audit.py``, and what it needs besides the checkpoint, into a run's folder.

    Returns:
        dict: each copy of a source file, and what it is a copy of.

    Raises:
        UserError: a pair whose log weights can't be had by tracing its two programs at given
            latents, or without this engine.
    """
    with registry.recorded() as calls:
        experiment, _ = trained(run, options, tell)
    number = min(NUM_IMAGES, len(experiment.images("test", None)[0]))
    x, fields = experiment.images("test", number)[0], experiment.fields("test", number)
    model, guide, folder = experiment.model, experiment.guide, run.folder
    weights = checkpoint_files.newest(run.checkpoints).path
    data, names = _data(model, guide, x, fields, options.seed)
    writer = _Writer(calls, model=model, guide=guide)
    sources = Sources()
    # a part may construct its own parts
    for part in (*writer.classes, *(call.part for call in calls)):
        sources.add(part.__module__, part.__name__)
    copies = sources.copies()
    beside = folder / "audit"
    text = SCRIPT.substitute(
        num_images=len(data["x"]),
        num_draws=NUM_DRAWS,
        imports="\n".join(writer.imports()),
        pair="\n".join(writer.statements),
        weights=weights.relative_to(folder).as_posix(),
        model_fields=names["model"],
        guide_fields=names["guide"],
        tolerance=TOLERANCE,
    )
    stored = io.BytesIO()
    torch.save(data, stored)
    contents = {beside / name: words.encode() for name, words in sources.packages().items()}
    contents |= {beside / name: path.read_bytes() for name, path in copies.items()}
    contents |= {beside / "data.pt": stored.getvalue(), folder / "audit.py": text.encode()}
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return {beside / name: path for name, path in copies.items()}


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
    """Objects as the calls that made them, each class under a name of its own.

    What several parts have in common is assigned once, before they are.
    """

    def __init__(self, calls: Sequence[registry.Call], **objects: Any) -> None:
        self._calls = {id(call.made): call for call in calls}
        given = [
            each for call in calls for value in call.arguments.values() for each in _all(value)
        ]
        self._shared = {key for key, uses in Counter(map(id, given)).items() if uses > 1}
        self._names = {id(value): name for name, value in objects.items()}
        self._written: set[int] = set()
        self.classes: dict[type, str] = {}
        self.statements: list[str] = []
        for name, value in objects.items():
            self._expression(name, value)

    def imports(self) -> list[str]:
        """A line for each class."""
        lines = []
        for part, name in self.classes.items():
            alias = "" if name == part.__name__ else f" as {name}"
            lines.append(f"from {copied_as(part.__module__)} import {part.__name__}{alias}")
        return sorted(lines)

    def _expression(self, name: str, value: Any) -> str:
        """For the argument of this name."""
        if (call := self._calls.get(id(value))) is None:
            return self._plain(name, value)
        if id(value) in self._written:
            return self._names[id(value)]
        given = (f"{key}={self._expression(key, each)}" for key, each in call.arguments.items())
        text = f"{self._class(call.part)}({', '.join(given)})"
        if id(value) not in self._shared | self._names.keys():
            return text
        own = self._names.setdefault(id(value), _free(name, self._names.values()))
        self.statements.append(f"{own} = {text}")
        self._written.add(id(value))
        return own

    def _plain(self, name: str, value: Any) -> str:
        match value:
            case str() if name == "net":
                return self._class(lookup.resolve("net", value))
            case type():
                return self._class(value)
            case float() if not isfinite(value):
                return f"float({str(value)!r})"
            case None | bool() | int() | float() | str():
                return repr(value)
            case list() | tuple():  # a torch.Size too
                inner = ", ".join(self._expression(name, each) for each in value)
                if isinstance(value, list):
                    return f"[{inner}]"
                return f"({inner},)" if len(value) == 1 else f"({inner})"
        raise UserError(
            f"no audit: the pair has a {type(value).__name__} that was not built from the run's "
            "options. Name model and guide as classes which build what they need"
        )

    def _class(self, part: type) -> str:
        return self.classes.setdefault(part, _free(part.__name__, self.classes.values()))


def _all(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _free(name: str, taken: Iterable[str]) -> str:
    """This name, or the first of name2, name3, … that is not taken."""
    return next(each for n in count(1) if (each := f"{name}{n if n > 1 else ''}") not in taken)


# ------------------------------------------------------------------------------------------
# The source that it needs
