"""Encode, reconstruct, sample and decode: exact on probabilistic PCA, the same for every way of
writing a pair.
"""

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor, nn
from torch.distributions import AffineTransform

from pyro_vae import fit, guides, models
from pyro_vae.analysis.encode import encode, reconstruct
from pyro_vae.analysis.generate import decode, sample
from pyro_vae.errors import UserError

PIXELS, LATENT, SIGMA = 6, 2, 0.3
RANDOM = torch.Generator().manual_seed(3)
W = torch.randn(PIXELS, LATENT, generator=RANDOM, dtype=torch.float64)
B = torch.randn(PIXELS, generator=RANDOM, dtype=torch.float64)
PRECISION = torch.eye(LATENT, dtype=torch.float64) + W.T @ W / SIGMA**2
IMAGES = torch.randn(23, PIXELS, generator=RANDOM, dtype=torch.float64)


def ppca_model(x: Tensor) -> None:
    """z ~ N(0, I), x ~ N(W z + b, σ²)."""
    with pyro.plate("images", len(x)):
        z = pyro.sample("latent", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
        pyro.sample("pixels", dist.Normal(z @ W.T + B, SIGMA).to_event(1), obs=x)


def ppca_guide(x: Tensor) -> None:
    """The exact posterior."""
    mean = torch.linalg.solve(PRECISION, W.T @ (x - B).T).T / SIGMA**2
    with pyro.plate("images", len(x)):
        pyro.sample("latent", dist.MultivariateNormal(mean, precision_matrix=PRECISION))


def posterior_mean(x: Tensor) -> Tensor:
    """By the joint Gaussian of z and x: Wᵀ (W Wᵀ + σ² I)⁻¹ (x − b)."""
    covariance = W @ W.T + SIGMA**2 * torch.eye(PIXELS, dtype=torch.float64)
    return (x - B) @ torch.linalg.inv(covariance) @ W


@pytest.mark.parametrize("batch_size", [1, 7, 11, 500])
def test_ppca_is_exact_at_every_batch_size(batch_size: int) -> None:
    mean = posterior_mean(IMAGES)
    encoded = encode(ppca_model, ppca_guide, IMAGES, batch_size)
    torch.testing.assert_close(encoded, {"latent": mean}, rtol=0, atol=1e-10)
    decoded = reconstruct(ppca_model, ppca_guide, IMAGES, batch_size)
    torch.testing.assert_close(decoded, {"pixels": mean @ W.T + B}, rtol=0, atol=1e-10)
    again = decode(ppca_model, encoded, like=IMAGES, batch_size=batch_size)
    torch.testing.assert_close(again, decoded, rtol=0, atol=1e-10)


def assert_moments(x: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Within 4 standard errors, the draws being Gaussian."""
    assert ((x.mean(0) - mean).abs() < 4 * (variance / len(x)).sqrt()).all()
    assert ((x.var(0) / variance - 1).abs() < 4 * (2 / len(x)) ** 0.5).all()


def test_reconstruction_at_a_draw_has_the_posteriors_spread() -> None:
    x = IMAGES[:1].expand(4000, -1)
    drawn = reconstruct(ppca_model, ppca_guide, x, at="sample")["pixels"]
    spread = (W @ torch.linalg.inv(PRECISION) @ W.T).diagonal()
    assert_moments(drawn, (posterior_mean(x[:1]) @ W.T + B)[0], spread)
    with pytest.raises(UserError, match="did you mean 'sample'"):
        reconstruct(ppca_model, ppca_guide, x, at="sampel")


@pytest.mark.parametrize("mean", [True, False])
def test_samples_have_the_marginals_moments(mean: bool) -> None:
    drawn = sample(ppca_model, 4000, like=IMAGES, mean=mean)["pixels"]
    variance = W.square().sum(1) + (0.0 if mean else SIGMA**2)
    assert_moments(drawn, B, variance)
    other = sample(ppca_model, 4000, like=IMAGES, mean=mean, seed=1)["pixels"]
    assert not torch.equal(drawn, other)
    assert torch.equal(drawn, sample(ppca_model, 4000, like=IMAGES, mean=mean)["pixels"])


def test_what_a_model_lacks_is_said() -> None:
    with pytest.raises(UserError, match=r"give like=x"):
        sample(ppca_model, 3)
    with pytest.raises(UserError, match=r"unknown latent site 'z'; .*latent"):
        decode(ppca_model, {"z": torch.zeros(3, 2)}, like=IMAGES)
    with pytest.raises(UserError, match=r"shape \(3, 5\): expected \(N, \*\(2,\)\)"):
        decode(ppca_model, {"latent": torch.zeros(3, 5)}, like=IMAGES)
    with pytest.raises(UserError, match="the same N"):
        decode(ppca_model, {}, like=IMAGES)


def pair_of(net: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden": (8,)} if net == "MLP" else {"channels": (4, 8)}
    model = models.GenerativeModel(
        models.StandardNormal(2), models.Bernoulli(2, shape, net=net, **sizes)
    )
    return model, guides.MeanField(shape, 2, net=net, **sizes)


@pytest.mark.parametrize(("net", "shape"), [("MLP", (9,)), ("MLP", (1, 4, 5)), ("Conv", (3, 7, 8))])
def test_our_pairs_have_the_images_shape(net: str, shape: tuple[int, ...]) -> None:
    model, guide = pair_of(net, shape)
    x = torch.rand(11, *shape).round()
    with torch.no_grad():
        expected = guide.eval().build(guide.local(x)).mean
    guide.train()
    torch.testing.assert_close(encode(model, guide, x, batch_size=4), {"z": expected})
    decoded = reconstruct(model, guide, x, batch_size=4)["x"]
    torch.testing.assert_close(decode(model, {"z": expected})["x"], decoded)
    drawn = sample(model, 7, batch_size=3)["x"]
    assert decoded.shape == (11, *shape) and drawn.shape == (7, *shape)
    assert ((drawn > 0) & (drawn < 1)).all()
    assert set(sample(model, 7, mean=False)["x"].unique().tolist()) <= {0.0, 1.0}


def hidden_in_closures() -> tuple[Callable[..., Any], Callable[..., Any], list[nn.Module]]:
    """Functions whose modules no attribute tells, in train mode, with BatchNorm and dropout."""
    encoder = nn.Sequential(
        nn.Linear(PIXELS, 2 * LATENT), nn.BatchNorm1d(2 * LATENT), nn.Dropout(0.5)
    )
    decoder = nn.Sequential(nn.Linear(LATENT, PIXELS), nn.BatchNorm1d(PIXELS))

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("rows", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide, [encoder, decoder]


@pytest.mark.parametrize("call", ["encode", "reconstruct", "sample", "decode"])
def test_nothing_of_the_callers_is_touched(call: str) -> None:
    torch.manual_seed(0)
    model, guide, hidden = hidden_in_closures()
    x = IMAGES.float()
    calls: dict[str, Callable[[int], dict[str, Tensor]]] = {
        "encode": lambda size: encode(model, guide, x, size),
        "reconstruct": lambda size: reconstruct(model, guide, x, size),
        "sample": lambda size: sample(model, 20, like=x, batch_size=size),
        "decode": lambda size: decode(model, {"z": x[:, :LATENT]}, like=x, batch_size=size),
    }
    buffers = [b.clone() for module in hidden for b in module.buffers()]
    torch.manual_seed(8)
    state = torch.get_rng_state()
    first, second = calls[call](23), calls[call](4)
    if (
        call != "sample"
    ):  # in train mode the batch's own statistics, and dropout, would make them differ
        torch.testing.assert_close(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for top in hidden for module in top.modules())
    assert all(map(torch.equal, buffers, [b for module in hidden for b in module.buffers()]))
    assert not any(value.requires_grad for value in first.values())
    assert not pyro.get_param_store().keys()


def test_parameters_of_functions_are_those_that_were_fitted() -> None:
    def model(x: Tensor) -> None:
        shift = pyro.param("shift", torch.zeros(PIXELS))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(PIXELS), 0.01).to_event(1))
            pyro.sample("x", dist.Normal(z + shift, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(PIXELS))
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(loc.expand(len(x), -1), 0.01).to_event(1))

    x = torch.full((32, PIXELS), 5.0)
    with pytest.raises(UserError, match="fit this same pair"):
        encode(model, guide, x)
    fit(
        model,
        guide,
        x,
        num_steps=300,
        learning_rate=0.1,
        progress=False,
        compile="off",
        device="cpu",
    )
    drawn = sample(model, 10, like=x, guide=guide)["x"]
    assert ((drawn - 5).abs() < 0.1).all()
    with pytest.raises(UserError, match=r"'shift'.*guide=…"):
        sample(model, 10, like=x)


def test_sites_in_an_inner_plate_and_several_sites() -> None:
    """Rows come first, whatever the plates; a site is encoded given the means of those before it."""

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            with pyro.plate("parts", 3):
                parts = pyro.sample("parts_of_x", dist.Normal(0.0, 1.0))
            top = pyro.sample("top", dist.Normal(0.0, 1.0))
            pyro.sample("left", dist.Normal(parts.T + top[:, None], 1.0).to_event(1), obs=x[:, :3])
            pyro.sample("right", dist.Bernoulli(logits=top), obs=(x[:, 3] > 0).to(x.dtype))

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            with pyro.plate("parts", 3):
                parts = pyro.sample("parts_of_x", dist.Normal(x[:, :3].T, 1.0))
            pyro.sample("top", dist.Normal(parts.sum(0), 1.0))

    latents = encode(model, guide, IMAGES)
    torch.testing.assert_close(latents["parts_of_x"], IMAGES[:, :3])
    torch.testing.assert_close(latents["top"], IMAGES[:, :3].sum(1))
    expected = {
        "left": IMAGES[:, :3] + IMAGES[:, :3].sum(1, keepdim=True),
        "right": torch.sigmoid(IMAGES[:, :3].sum(1)),
    }
    torch.testing.assert_close(reconstruct(model, guide, IMAGES), expected)
    # three images in a batch, as many as parts
    torch.testing.assert_close(decode(model, latents, like=IMAGES, batch_size=3), expected)


def test_a_distribution_without_a_mean_is_averaged_and_a_discrete_latent_is_drawn() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            which = pyro.sample("which", dist.Categorical(logits=x.new_zeros(2)))
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
            pyro.sample(
                "x", dist.Normal(torch.tensor([0.0, 10.0])[which] + 0 * shift, 1.0), obs=x[:, 0]
            )

    def guide(x: Tensor) -> None:
        affine = AffineTransform(x[:, 1], 2.0)
        with pyro.plate("rows", len(x)):
            pyro.sample("which", dist.Categorical(probs=torch.tensor([0.75, 0.25])))
            pyro.sample(
                "shift",
                dist.TransformedDistribution(dist.Normal(torch.zeros(len(x)), 1.0), [affine]),
            )

    x = IMAGES.float()
    latents = encode(model, guide, x)
    assert ((latents["shift"] - x[:, 1]).abs() < 4.5 * 2 / 10).all()
    assert ((latents["which"] - 0.25).abs() < 4.5 * 0.43 / 10).all()
    assert set(reconstruct(model, guide, x)["x"].unique().tolist()) == {0.0, 10.0}


def test_the_average_of_constant_draws_is_the_constant() -> None:
    """As of a flow, which says no mean: codes and reconstructions of one whose draws are a number
    each.
    """

    def known(x: Tensor) -> Any:
        return dist.TransformedDistribution(
            dist.Normal(torch.zeros_like(x), 1.0), [AffineTransform(x, 1e-9)]
        )

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", known(2 * z).to_event(1), obs=x[:, :3])

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", known(x[:, :3] + 5).to_event(1))

    x = IMAGES.double()
    torch.testing.assert_close(encode(model, guide, x)["z"], x[:, :3] + 5, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(
        reconstruct(model, guide, x)["x"], 2 * x[:, :3] + 10, rtol=1e-7, atol=1e-7
    )


def test_fields_reach_the_programs_that_name_them() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample(
                "x",
                dist.Normal(0 * z + y[:, None], 1.0).expand([len(x), PIXELS]).to_event(1),
                obs=x,
            )

    def guide(x: Tensor, index: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(index[:, None].double(), 1.0).to_event(1))

    y = torch.arange(23.0, dtype=torch.float64)
    assert encode(model, guide, IMAGES, 5, y=y)["z"][:, 0].tolist() == y.tolist()
    for decoded in (
        reconstruct(model, guide, IMAGES, 5, y=y),
        sample(model, 23, like=IMAGES, batch_size=5, y=y),
    ):
        assert torch.equal(decoded["x"], y[:, None].expand(-1, PIXELS))
    with pytest.raises(UserError, match="requires the field 'y'"):
        sample(model, 23, like=IMAGES)
