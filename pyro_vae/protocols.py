"""Protocols of parts: the optional hooks that a part may have besides its Pyro program.

A part has the hooks that it needs and inherits nothing for them. `Local` and `DataStart` are two
methods that belong together, and are asked for by ``isinstance``; of the others each is separate,
and `hook` reads it, with the default that is written here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pyro.distributions import TorchDistribution
    from torch import Tensor

    from pyro_vae.training.init import TrainingImages


class Part(Protocol):
    """Any class that a choice may name: where it belongs, and how it is built and run."""

    slot: str | None = None
    """The slot of the registry that it is a choice of, such as ``"guide"``."""
    pure: bool = False
    """Whether Python decides nothing in it between two steps, so that it is traced; not
    inherited.
    """
    context_of: Callable[[str, Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]] | None = (
        None
    )
    """(argument, values, context) → what the registry fills that argument's own arguments from."""
    check_fields: Callable[[Mapping[str, Tensor]], None] | None = None
    """Raises a ``UserError`` for named fields that the program can't take, read once before a
    run.
    """


class Conditional(Protocol):
    """A model, or its likelihood p(x | z): what x is, and what fits it."""

    kind: str | None = None
    """``"mass"`` or ``"density"``: log p(x) is comparable within a kind only."""
    observes: str | None = None
    """The values that a pixel may take: ``binary``, ``unit``, ``real``, ``levels``, ``counts``."""
    levels: int | None = None
    """How many grey levels the mass is over, where it is over levels."""
    per_pixel: int = 1
    """How many numbers the decoder gives for each pixel, which decides how much memory a row
    takes.
    """
    latent_dim: int | None = None
    """How many numbers the likelihood decodes."""
    latent_dims: tuple[int, ...] | None = None
    """A hierarchy's dimensions from the image upwards: its latents are ``z1``, ``z2``, …"""
    posterior: Callable[[Tensor], TorchDistribution] | None = None
    """p(z | x) in closed form, for images ``(B, *event_shape)``."""
    fitting_guides: tuple[str, ...] = ()
    """The names of the guides that are written for this model, for the sentence of a refusal."""


class Guide(Protocol):
    """A guide: whose q(z | x) it is, and what scoring it costs."""

    amortized: bool = True
    """Whether images that it was not fitted on have a q(z | x)."""
    first_order: bool = False
    """Whether its gradient leaves a part out by design."""
    scoring_passes: int = 0
    """Passes of a flow's networks for a z that it did not draw; 0 where the density is closed."""
    fields_go_to: Callable[[], tuple[Callable[..., Any], ...]] | None = None
    """The programs to which ``forward(x, **fields)`` passes its fields: their signatures name
    them.
    """
    classify: Callable[[Tensor], Tensor] | None = None
    """x → log q(y | x) of each class, ``(B, C)``, of a guide that has the class as a latent."""
    start: Callable[..., Tensor] | None = None
    """(x, **fields) → η at which `refine` begins, ``(B, P)``; ``local`` where there is none."""


@runtime_checkable
class Local(Protocol):
    """A guide that says each image's variational parameters η: q(z | x) = build(local(x))."""

    def local(self, x: Tensor, **fields: Any) -> Tensor:
        """η, ``(B, P)`` and unconstrained, of the images ``x``, ``(B, *event_shape)``."""

    def build(self, eta: Tensor) -> TorchDistribution:
        """q(z | x), batch shape ``(B,)``."""


@runtime_checkable
class DataStart(Protocol):
    """A module that starts from the training data: a decoder's bias, a mixture's components."""

    @property
    def waits_for_data(self) -> bool:
        """Whether its start is still to come; False once it has had one, or was loaded."""

    def start_from_data(self, data: TrainingImages) -> None:
        """Start from the images that are trained on; called once, before the first step."""


DEFAULTS: Mapping[str, Any] = {
    name: getattr(each, name)
    for each in (Part, Conditional, Guide)
    for name in each.__annotations__
}
"""Every optional hook by name."""


def hook(part: Any, name: str) -> Any:
    """What a part, or a class of parts, has as this hook; else its default."""
    return getattr(part, name, DEFAULTS[name])
