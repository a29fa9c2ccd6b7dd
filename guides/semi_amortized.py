"""Semi-amortized guide: a network's output, refined by gradient steps."""

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
    """q(z | x) = N(μ, diag σ²), where (μ, log σ) is a network's output plus a few gradient steps.

    Each of the ``steps`` steps climbs the image's ELBO along the natural gradient: Δμ = step_size ·
    σ² ∇_μ, Δ log σ = step_size · ½ ∇_log σ, none larger than (σ, 1). The ELBO is estimated with
    fixed antithetic noises, so η is deterministic given x, and what is drawn can be scored again.
    The gradient is first order: the network learns as if the steps did not depend on its output.
    The guide's parameters are those of the network only.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        latent_dim: D, the number of dimensions of z.
        model: the generative model. It is used by the guide, and is no part of it.
        steps: gradient steps for each image.
        step_size: factor of the natural gradient, a positive number.
        num_particles: fixed noises of the ELBO's estimate, an even number.
        net: the encoder network: a name, a call such as ``"MLP(hidden=(200,))"``, a class, or an
            ``nn.Module`` that maps ``(rows, *event_shape)`` to ``(rows, num_params)``.
        **net_args: arguments of the network, such as ``hidden=(200, 200)``.

    Raises:
        UserError: a number out of its range, or an unknown network.

    Reference:
        Kim et al. 2018, "Semi-Amortized Variational Autoencoders".
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
