"""What Pyro 1.9.2 does wrong without a word (evaluation.md's table): refused here with what to do,
or done right.

Each pair runs under Pyro's own estimator first, to show that nothing there stops it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import infer, poutine
from pyro.infer import importance as pyro_importance
from torch import Tensor

import pyro_vae as pv
from tests.support.exact import Exact, ppca

K = 50
CASE = ppca(100, widen=1.3)
LATENT = 3


def parts() -> tuple[Callable[[Tensor], Any], Callable[[Tensor], Any], Any]:
    """The pPCA decoder's mean, the guide's distribution, and the observation's sd, to be put in
    other plates.
    """
    trace = poutine.trace(
        poutine.condition(CASE.model, data={"latent": torch.zeros(1, LATENT).double()})
    )
    start = trace.get_trace(CASE.x[:1]).nodes["pixels"]["fn"].mean
    eye = torch.eye(LATENT, dtype=torch.float64)
    moved = poutine.trace(poutine.condition(CASE.model, data={"latent": eye})).get_trace(
        CASE.x[:LATENT]
    )
    weight = moved.nodes["pixels"]["fn"].mean - start
    return (
        lambda z: z @ weight + start[0],
        lambda x: poutine.trace(CASE.guide).get_trace(x).nodes["latent"]["fn"],
        0.7,
    )


decode, posterior, SIGMA = parts()
ZEROS = torch.zeros(LATENT, dtype=torch.float64)
with torch.no_grad():
    AT_X = posterior(CASE.x)


def q(x: Tensor, rows: slice = slice(None)) -> Any:
    """The guide's law for these of the 100 images, or for a dry run's few: affine in x, by the
    table where it fits.
    """
    return dist.MultivariateNormal(_loc(x), scale_tril=AT_X.scale_tril[0])


def _affine() -> tuple[Tensor, Tensor]:
    rows = torch.cat(
        (torch.zeros_like(CASE.x[:1]), torch.eye(CASE.x.shape[1], dtype=torch.float64))
    )
    loc = posterior(rows).loc
    return loc[0], loc[1:] - loc[0]


START, SLOPE = _affine()


def _loc(x: Tensor) -> Tensor:
    return START + x @ SLOPE


def sample_z(x: Tensor) -> Tensor:
    """The prior's site."""
    return pyro.sample("latent", dist.Normal(ZEROS, 1.0).expand([len(x), LATENT]).to_event(1))


# ---- the pairs of the table


def good_model(x: Tensor) -> None:
    """All sites in the data plate."""
    with pyro.plate("images", len(x)):
        z = pyro.sample("latent", dist.Normal(ZEROS, 1.0).to_event(1))
        pyro.sample("pixels", dist.Normal(decode(z), SIGMA).to_event(1), obs=x)


def good_guide(x: Tensor) -> None:
    """Its guide."""
    with pyro.plate("images", len(x)):
        pyro.sample("latent", q(x))


def joint_model(x: Tensor) -> None:
    """No plate: the batch is one event."""
    z = pyro.sample("latent", dist.Normal(torch.zeros(len(x), LATENT).double(), 1.0).to_event(2))
    pyro.sample("pixels", dist.Normal(decode(z), SIGMA).to_event(2), obs=x)


def joint_guide(x: Tensor) -> None:
    """Its guide."""
    pyro.sample("latent", q(x).to_event(1))


def factor_model(x: Tensor) -> None:
    """A term of the whole batch, beside the plate."""
    good_model(x)
    pyro.factor("penalty", torch.zeros(()))


def outside_model(x: Tensor) -> None:
    """A global latent, beside the plate."""
    shift = pyro.sample("shift", dist.Normal(torch.zeros(()).double(), 0.1))
    with pyro.plate("images", len(x)):
        z = pyro.sample("latent", dist.Normal(ZEROS, 1.0).to_event(1))
        pyro.sample(
            "pixels", dist.Normal(decode(z) + shift.unsqueeze(-1), SIGMA).to_event(1), obs=x
        )


def outside_guide(x: Tensor) -> None:
    """Its guide."""
    pyro.sample("shift", dist.Normal(torch.zeros(()).double(), 0.02))
    good_guide(x)


def subsampling_model(x: Tensor) -> None:
    """The plate of a set of 6000."""
    with pyro.plate("images", 6000, subsample=x):
        z = pyro.sample("latent", dist.Normal(ZEROS, 1.0).to_event(1))
        pyro.sample("pixels", dist.Normal(decode(z), SIGMA).to_event(1), obs=x)


def subsampling_guide(x: Tensor) -> None:
    """Its guide."""
    with pyro.plate("images", 6000, subsample=x):
        pyro.sample("latent", q(x))


def scaled_model(x: Tensor) -> None:
    """A KL weight in the model."""
    with pyro.plate("images", len(x)):
        with poutine.scale(scale=0.5):
            z = pyro.sample("latent", dist.Normal(ZEROS, 1.0).to_event(1))
        pyro.sample("pixels", dist.Normal(decode(z), SIGMA).to_event(1), obs=x)


REFUSED: dict[str, tuple[Any, Any, float, str]] = {
    "no plate, to_event(2)": (
        joint_model,
        joint_guide,
        1.0,
        r"'latent' of the model is outside the data plate .*: sample it inside `with pyro\.plate\('data', x\.shape\[0\]\):`",
    ),
    "pyro.factor outside the plate": (
        factor_model,
        good_guide,
        1.0,
        r"'penalty' of the model is outside the data plate .*: sample it inside",
    ),
    "a site outside the plate": (
        outside_model,
        outside_guide,
        1.0,
        r"'shift': a latent shared by all images, .*log p\(x\) of one image is not defined",
    ),
    "a subsampling plate": (
        subsampling_model,
        subsampling_guide,
        1 / 60,
        r"the data plate 'images' subsamples, .* write pyro\.plate\(name, x\.shape\[0\]\)",
    ),
    "poutine.scale on a site": (
        scaled_model,
        good_guide,
        1.0,
        r"'latent' of the model is scaled by 0\.5 .*: use pyro\.plate\(name, x\.shape\[0\]\) without a scale",
    ),
    "poutine.scale on both programs": (
        poutine.scale(good_model, scale=2.0),
        poutine.scale(good_guide, scale=2.0),
        0.5,
        r"is scaled by 2 .* without a scale, or score",
    ),
}


def renyi(model: Any, guide: Any) -> float:
    """Pyro's IWAE bound an image, in silence: any warning is an error in this test suite."""
    torch.manual_seed(0)
    bound = infer.RenyiELBO(alpha=0, num_particles=K, vectorize_particles=True, max_plate_nesting=1)
    return -bound.loss(model, guide, CASE.x) / len(CASE.x)


def test_the_right_pair_is_right_in_both() -> None:
    ours = pv.log_marginal(
        good_model, good_guide, CASE.x, num_samples=K, device="cpu", compile="off"
    )
    assert abs(ours.mean - ours.bias - CASE.mean) < 4 * ours.se_mc
    assert renyi(good_model, good_guide) == pytest.approx(ours.mean, abs=8 * ours.se_mc)


@pytest.mark.parametrize("name", REFUSED)
def test_what_pyro_runs_in_silence_is_refused_with_what_to_do(name: str) -> None:
    model, guide, unscaled, words = REFUSED[name]
    right = renyi(good_model, good_guide)
    assert abs(renyi(model, guide) * unscaled - right) > 0.03, (
        "Pyro's number is not off: no silent failure"
    )
    for call in (
        lambda: pv.log_marginal(model, guide, CASE.x, num_samples=K, device="cpu"),
        lambda: pv.log_marginal(
            model, guide, CASE.x, num_samples=K, device="cpu", proposal="Defensive"
        ),
        lambda: pv.log_weights(model, guide, CASE.x),
    ):
        with pytest.raises(pv.UserError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", REFUSED)
def test_and_by_ais(name: str) -> None:
    model, guide, _, _ = REFUSED[name]
    with pytest.raises(pv.UserError) as error:
        pv.ais(model, guide, CASE.x, num_steps=2, num_chains=2, device="cpu")
    assert "\n" not in str(error.value)


def test_weights_are_each_images_own() -> None:
    """``vectorized_importance_weights`` gives one joint weight a draw, and ``psis_diagnostic`` one
    k̂ for all images.
    """
    torch.manual_seed(0)
    joint = pyro_importance.vectorized_importance_weights(
        good_model, good_guide, CASE.x, num_samples=K, max_plate_nesting=1, normalized=False
    )[0]
    assert joint.shape == (K,)
    assert pv.log_weights(good_model, good_guide, CASE.x, num_particles=K).shape == (K, 100)
    result = pv.log_marginal(
        good_model, good_guide, CASE.x, num_samples=200, device="cpu", compile="off"
    )
    assert result.khat.shape == result.ess.shape == (100,) and result.khat.isfinite().all()


def test_a_kl_weight_in_the_model_alone_is_heeded() -> None:
    """Pyro's TraceMeanField_ELBO ignores it; ours samples that KL, as Pyro's Trace_ELBO does."""
    loss = infer.TraceMeanField_ELBO(num_particles=1)

    def mean_field(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("latent", dist.Normal(_loc(x), 0.5).to_event(1))

    values = []
    for model in (good_model, scaled_model):
        torch.manual_seed(0)
        values.append(loss.loss(model, mean_field, CASE.x))
    assert values[0] == values[1], "Pyro heeds the scale"
    quick: dict[str, Any] = {"num_steps": 1, "progress": False, "device": "cpu", "compile": "off"}
    found = [
        pv.fit(scaled_model, learnable, CASE.x, objective=name, learning_rate=1e-12, **quick)
        .train[0]
        .loss
        for name in ("TraceMeanField_ELBO", "Trace_ELBO")
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    pv.fit(scaled_model, poutine.scale(learnable, scale=0.5), CASE.x, **quick)


def learnable(x: Tensor) -> None:
    """A mean-field guide with one parameter."""
    scale = pyro.param("scale", torch.tensor(0.5, dtype=torch.float64))
    with pyro.plate("images", len(x)):
        pyro.sample("latent", dist.Normal(_loc(x), scale).to_event(1))


def test_the_kl_of_a_full_rank_guide_is_closed() -> None:
    """Pyro has no KL of it to independent normals registered, and falls back to a sampled one in
    silence.
    """
    from pyro_vae.pair.runtime import Pair

    structure = Pair.of(good_model, good_guide).structure(CASE.x, {})
    assert structure.analytic == ("latent",) and not structure.sampled


def test_a_hierarchical_guide_in_the_other_order_is_right() -> None:
    """Model a → b → x, guide b → a: Pyro's closed form at b is not its KL (−2.288 for −1.614); ours
    samples it.
    """
    from tests.support.exact import two_levels

    case: Exact = two_levels(200)
    result = pv.log_marginal(
        case.model, case.guide, case.x, num_samples=10, device="cpu", compile="off"
    )
    assert result.elbo == pytest.approx(case.mean, abs=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pyro_says = (
            -infer.TraceMeanField_ELBO(num_particles=50).loss(case.model, case.guide, case.x) / 200
        )
    assert pyro_says < case.mean - 0.1
