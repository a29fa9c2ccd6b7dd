"""``check_pair``: a report on a model and a guide before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyro_vae.fields import argument_of
from pyro_vae.formatting import Printed
from pyro_vae.pair.independence import independence
from pyro_vae.pair.log_weights import prepare
from pyro_vae.pair.observed_support import check_all_support
from pyro_vae.pair.signatures import takes_fields
from pyro_vae.pair.structure import Structure
from pyro_vae.pair.supports import support_notes

LAYOUT_WORDS = {
    "plate": "an outer plate; the guide's network runs once for each image",
    "rows": "an outer plate around the guide, and flattened rows in the model; the guide's "
    "network runs once for each image",
    "repeat": "each image is repeated; the guide's network runs once for each draw",
}


@dataclass(frozen=True)
class PairReport(Printed):
    """What was found out about a pair that can be trained; ``print`` shows it in words."""

    structure: Structure
    layout: str  # of many draws: plate, rows or repeat; none where log p(x) can't be had
    fields: tuple[str, ...]  # those that the two programs name
    warnings: tuple[str, ...] = ()  # images that depend on each other, supports that differ

    def __str__(self) -> str:
        s = self.structure
        lines = [
            f"observed sites: {', '.join(s.observed)}; latent sites: "
            f"{', '.join(s.latents) or 'none'}",
            *(
                [
                    f"data plate: {s.plates[0]!r} in the model, {s.plates[1]!r} in the guide"
                    + (" (subsampling: fit only, no log p(x))" if s.subsampling else "")
                ]
                if s.plates[0]
                else []
            ),
            *s.words(),
            *([f"layout of many draws: {LAYOUT_WORDS[self.layout]}"] if self.layout else []),
        ]
        if self.fields:
            lines.append(f"fields: {', '.join(self.fields)}")
        if s.score_function:
            lines.append(
                f"not reparameterised: {', '.join(s.score_function)} (Trace_ELBO's "
                "score-function gradients)"
            )
        if s.asked:
            lines.append(
                "trained only by Pyro's own objectives: "
                f"{'; '.join(f'{n!r} asks {what}' for n, what in s.asked.items())}"
            )
        if s.own_draws_only:
            lines.append(
                f"scored only at their own last draw: {', '.join(s.own_draws_only)} (no STL, "
                "DReG, AIS)"
            )
        if s.not_held:
            lines.append(f"no STL, no DReG: {s.not_held}")
        if s.point_masses:
            lines.append(f"point masses: {', '.join(s.point_masses)} (an autoencoder: no log p(x))")
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])


@takes_fields
def check_pair(
    model: Callable[..., Any], guide: Callable[..., Any], x: Any, **fields: Any
) -> PairReport:
    """Check that a model and a guide fit together, before training. Nothing is trained or changed.

    Both programs run on five images like ``x``.

    Example::

        print(pv.check_pair(model, guide, x))  # sites, plates, layout, warnings

    Args:
        model, guide: Pyro programs, as `fit` takes them.
        x: images ``(N, *event_shape)``.
        **fields: named arguments of the programs, one row for each image.

    Returns:
        A `PairReport`, which prints the sites, the plates, which KLs are closed, and what the pair
        can't be used for.

    Raises:
        UserError: they do not fit together: which site, which plate, both shapes, and what to
            change.
    """
    pair, images, named = prepare(model, guide, x, fields, 1, may_create=True)
    structure = pair.structure(images, named, scored=False)
    check_all_support(pair, images, named)
    wanted = sorted((pair.model.field_names | pair.guide.field_names) & {*map(argument_of, named)})
    if structure.unscored:
        return PairReport(structure, "", tuple(wanted), (f"fit only: {structure.unscored}",))
    notes = support_notes(pair, images, named)
    if site := independence(pair, images, named).site:
        notes += (f"site {site} depends on the other images of its batch: fit only, no log p(x)",)
    return PairReport(structure, pair.layout(images, named), tuple(wanted), notes)
