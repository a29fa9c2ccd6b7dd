"""NumPyro, channels last: the jitted `SVI.update`, a whole epoch in `lax.scan` over resident data,
`RenyiELBO` in chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import torch
from jax import lax, random
from numpyro import distributions as dist
from numpyro.infer import SVI, RenyiELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from benchmarks.architectures import Architecture
from benchmarks.contestants import Step, Train, timed

Layer = tuple[Any, Callable[[Any, Any], Any]]  # parameters, apply(parameters, x)
_PLANES = ("NHWC", "HWIO", "NHWC")
_ACTIVATIONS: dict[type, Callable[[Any], Any]] = {
    nn.Tanh: jnp.tanh,
    nn.Softplus: jax.nn.softplus,
    nn.LeakyReLU: jax.nn.leaky_relu,
    nn.SiLU: jax.nn.silu,
}


def _array(tensor: Tensor) -> Any:
    return jnp.asarray(tensor.detach().cpu().numpy())


def _batch_norm(parameters: Any, x: Any) -> Any:
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) * lax.rsqrt(var + 1e-5) * parameters[0] + parameters[1]


def _unflatten(shape: Sequence[int], x: Any) -> Any:
    return x.reshape(-1, *shape).transpose(0, 2, 3, 1)


def _layer(module: nn.Module) -> Layer:
    """A torch layer's parameters, and the same map in JAX."""
    if isinstance(module, nn.Linear):
        return (_array(module.weight.T), _array(module.bias)), lambda p, x: x @ p[0] + p[1]
    if isinstance(module, nn.Conv2d):
        bias = () if module.bias is None else (_array(module.bias),)
        strides = module.stride
        return (_array(module.weight.permute(2, 3, 1, 0)), *bias), lambda p, x: sum(
            p[1:],
            lax.conv_general_dilated(x, p[0], strides, ((1, 1), (1, 1)), dimension_numbers=_PLANES),
        )
    if isinstance(
        module, nn.ConvTranspose2d
    ):  # a convolution of the dilated image by the mirrored kernel
        kernel = module.weight.flip(2, 3).permute(2, 3, 0, 1)
        pads = [(1, 1 + extra) for extra in module.output_padding]
        return (_array(kernel),), lambda p, x: lax.conv_general_dilated(
            x, p[0], (1, 1), pads, lhs_dilation=(2, 2), dimension_numbers=_PLANES
        )
    if isinstance(module, nn.BatchNorm2d):
        return (_array(module.weight), _array(module.bias)), _batch_norm
    if isinstance(module, nn.Flatten):
        return (), lambda p, x: x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    if isinstance(module, nn.Unflatten):
        shape = module.unflattened_size
        return (), lambda p, x: _unflatten(shape, x)
    activation = _ACTIVATIONS[type(module)]
    return (), lambda p, x: activation(x)


def _network(layers: nn.Sequential) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(init, apply) as `numpyro.module` takes them; it starts from the torch network's parameters."""
    parameters, functions = zip(*(_layer(module) for module in layers), strict=True)

    def apply(parameters: Any, x: Any) -> Any:
        for function, own in zip(functions, parameters, strict=True):
            x = function(own, x)
        return x

    return lambda key, shape: (shape, parameters), apply


def _programs(encoder: nn.Sequential, decoder: nn.Sequential, latent_dim: int) -> tuple[Any, Any]:
    down, up = _network(encoder), _network(decoder)

    def model(x: Any) -> None:
        decode = numpyro.module("decoder", up, (latent_dim,))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample(
                "z", dist.Normal(jnp.zeros(latent_dim), 1.0).expand((latent_dim,)).to_event(1)
            )
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(x.ndim - 1), obs=x)

    def guide(x: Any) -> None:
        encode = numpyro.module("encoder", down, x.shape[1:])
        with numpyro.plate("data", len(x)):
            loc, log_scale = jnp.split(encode(x), 2, axis=-1)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    return model, guide


def _inference(at: Architecture, images: Any) -> tuple[Any, Any]:
    model, guide = _programs(*at.networks(), at.latent_dim)
    inference = SVI(model, guide, numpyro.optim.Adam(1e-3), TraceMeanField_ELBO())
    return inference, inference.init(random.PRNGKey(0), images[: at.batch_size])


def _images(x: Tensor) -> Any:
    return jnp.asarray(np.ascontiguousarray(x.movedim(1, -1).numpy()))


def step(at: Architecture, x: Tensor) -> Step:
    """One jitted `SVI.update` on the batch ``x``."""
    batch = _images(x)
    inference, state = _inference(at, batch)
    update = jax.jit(inference.update, donate_argnums=0)

    def run() -> Any:
        nonlocal state
        state, loss = update(state, batch)
        return loss

    return run


def epochs(at: Architecture, images: Tensor) -> Train:
    """Passes that never leave XLA: a permutation, and a scan over its batches."""
    resident = _images(images)
    inference, state = _inference(at, resident)
    num_batches = len(resident) // at.batch_size

    @partial(jax.jit, donate_argnums=0)
    def scan(state: Any, key: Any, resident: Any) -> Any:
        rows = random.permutation(key, len(resident))[: num_batches * at.batch_size]
        state, losses = lax.scan(
            lambda state, rows: inference.update(state, resident[rows]),
            state,
            rows.reshape(num_batches, -1),
        )
        return state, losses.sum()

    key = random.PRNGKey(1)

    def epoch() -> Any:
        nonlocal state, key
        key, own = random.split(key)
        state, loss = scan(state, own, resident)
        return loss

    return timed(epoch, num_batches * at.batch_size)


def log_px(
    encoder: nn.Sequential, decoder: nn.Sequential, num_samples: int, chunk: int = 500
) -> Callable[[Tensor], Tensor]:
    """An estimator of log p(x) by `RenyiELBO(alpha=0)`, jitted, image by image in chunks of draws."""
    latent_dim = decoder[0].in_features
    model, guide = _programs(encoder, decoder, int(latent_dim))  # type: ignore[arg-type]
    bound = RenyiELBO(alpha=0, num_particles=chunk)
    parameters = {
        "encoder$params": _network(encoder)[0](None, ())[1],
        "decoder$params": _network(decoder)[0](None, ())[1],
    }

    @jax.jit
    def estimate(parameters: Any, key: Any, images: Any) -> Any:
        def image(given: Any) -> Any:
            key, x = given
            keys = random.split(key, num_samples // chunk)
            parts = lax.map(lambda key: -bound.loss(key, parameters, model, guide, x[None]), keys)
            return jax.nn.logsumexp(parts) - math.log(num_samples // chunk)

        return lax.map(image, (random.split(key, len(images)), images))

    key = random.PRNGKey(0)

    def run(x: Tensor) -> Tensor:
        nonlocal key
        key, own = random.split(key)
        return torch.from_numpy(np.array(estimate(parameters, own, _images(x))))

    return run
