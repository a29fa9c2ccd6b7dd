"""The guide that starts at a network's guess and climbs."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro_vae.guides.mean_field import MeanField, NetSpec
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.pair.nodes import sample_nodes
from pyro_vae.pair.program import Program
from pyro_vae.validation import check_number, check_whole


class SemiAmortized(MeanField):
    """q(z | x) = N(μ, diag σ²), (μ, log σ) a network's guess plus gradient steps.

    η = (μ, log σ) climbs in ``steps`` steps. Each step climbs the image's ELBO, estimated with
    ``num_particles`` fixed
    antithetic noises, along the natural gradient: Δμ = step_size · σ² ∇_μ, Δ log σ = step_size · ½
    ∇_log σ, none larger than (σ, 1). So η is deterministic given x, and what is drawn can be scored
    again (Kim et al. 2018; first order: the network learns as if the steps did not depend on its
    guess). ``model`` is the generative model; it is not part of the guide, whose parameters are the
    network's alone.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: the number of dimensions of z.
        model: the generative model, which is used and not owned.
        steps: gradient steps for each image.
        step_size: the factor of the natural gradient, a positive number.
        num_particles: fixed noises of the ELBO's estimate, an even number.
        net: the encoder: a name, a call, a class, or a module that is ready (`make_encoder`).
        **net_args: the network's own arguments, such as ``hidden=(200, 200)``.
    """

    first_order: ClassVar[bool] = True
    noise: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        model: Any,
        steps: int = 5,
        step_size: float = 0.2,
        num_particles: int = 8,
        net: NetSpec = "MLP",
        **net_args: Any,
    ) -> None:
        check_whole("SemiAmortized(steps={!r})", steps, "steps")
        words = "a positive number, such as 0.2"
        check_number("SemiAmortized(step_size={!r})", step_size, words, ends="()")
        if isinstance(num_particles, bool) or num_particles not in range(2, 10_001, 2):
            raise UserError(
                f"SemiAmortized(num_particles={num_particles!r}): expected an even number of "
                "draws, 2 or more"
            )
        super().__init__(event_shape, latent_dim, net, **net_args)
        self.steps, self.step_size = steps, step_size
        self._model = (
            Program("model", model),
        )  # in a tuple, so that its parameters are not the guide's
        half = torch.randn(num_particles // 2, 1, latent_dim)
        half = half / half.square().mean(0).sqrt()  # mean 0 and variance 1, exactly
        self.register_buffer("noise", torch.cat((half, -half)))

    def fields_go_to(self) -> tuple[Callable[..., Any], ...]:
        """The model, whose ELBO is climbed."""
        return self._model

    def local(self, x: Tensor, **fields: Any) -> Tensor:
        """η after the steps, ``(B, 2 · latent_dim)``."""
        guess: Tensor = self.net(x)
        eta = guess.detach()
        rows = x.repeat(len(self.noise), *[1] * (x.dim() - 1))
        row_fields = {n: v.repeat(len(self.noise), *[1] * (v.dim() - 1)) for n, v in fields.items()}
        # no site of the model may reach the handlers around the guide; its parameters must
        with torch.enable_grad(), poutine.block(expose_types=["param"]):
            for _ in range(self.steps):
                eta = self._step(eta.detach().requires_grad_(), rows, row_fields)
        return guess + (eta.detach() - guess.detach())

    def _step(self, eta: Tensor, rows: Tensor, fields: dict[str, Tensor]) -> Tensor:
        loc, log_scale = eta.chunk(2, dim=-1)
        z = (loc + log_scale.exp() * self.noise).flatten(0, 1)
        elbo = self._log_joint(z, rows, fields).sum() / len(self.noise) + log_scale.sum()
        (gradient,) = torch.autograd.grad(elbo, eta)
        to_loc, to_log_scale = gradient.chunk(2, dim=-1)
        scale = log_scale.exp()
        shift = scale * (self.step_size * scale * to_loc).clamp(-1, 1)
        return eta + torch.cat((shift, (0.5 * self.step_size * to_log_scale).clamp(-1, 1)), dim=-1)

    def _log_joint(self, z: Tensor, rows: Tensor, fields: dict[str, Tensor]) -> Tensor:
        """log p(x, z) of each row."""
        (model,) = self._model
        with poutine.trace() as traced, poutine.condition(data={"z": z}):
            model(rows, fields)
        terms = [node["fn"].log_prob(node["value"]) for _, node in sample_nodes(traced.trace)]
        return sum(terms, torch.zeros(len(rows), dtype=z.dtype, device=z.device))
