"""The exact baselines: what a mixture of Gaussians and probabilistic PCA know of themselves, held
against other ways to it.
"""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture as Sklearns
from torch import Tensor

import pyro_vae as pv
from pyro_vae import guides, models
from pyro_vae.cli import entry
from pyro_vae.pair.log_weights import log_densities

COVARIANCES = ("diagonal", "full")


@cache
def clusters(size: int = 600, event_shape: tuple[int, ...] = (2, 2)) -> Tensor:
    """Images from three correlated Gaussians, in float64."""
    random = torch.Generator().manual_seed(4)
    pixels = int(np.prod(event_shape))
    centres = 3 * torch.randn(3, pixels, generator=random, dtype=torch.float64)
    roots = torch.randn(3, pixels, pixels, generator=random, dtype=torch.float64) / 2
    kind = torch.randint(3, (size,), generator=random)
    noise = torch.randn(size, pixels, 1, generator=random, dtype=torch.float64)
    x: Tensor = centres[kind] + (roots[kind] @ noise).squeeze(-1)
    return (x + 0.3 * torch.randn(size, pixels, generator=random, dtype=torch.float64)).reshape(
        size, *event_shape
    )


def mixture(covariance: str, components: int = 3, **args: Any) -> models.GaussianMixture:
    """In float64, away from its initial point."""
    torch.manual_seed(0)
    model = models.GaussianMixture((2, 2), components, covariance, **args).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.4 * torch.randn_like(parameter)
    return model


# ---- the mixture of Gaussians


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_log_px_is_the_engines_and_scikit_learns(covariance: str) -> None:
    model, x = mixture(covariance), clusters()
    result = pv.log_marginal(model, guides.Empty(), x, num_samples=1, device="cpu")
    assert result.exact and result.se_mc == 0.0
    other = Sklearns(3, covariance_type="diag" if covariance == "diagonal" else "full")
    law = model.law(torch.arange(3))
    other.weights_, other.means_ = (
        model.logits.softmax(-1).detach().numpy(),
        law.mean.flatten(1).detach().numpy(),
    )
    if covariance == "diagonal":
        other.precisions_cholesky_ = law.base_dist.scale.flatten(1).reciprocal().detach().numpy()
    else:
        roots = law.base_dist.scale_tril.detach()
        other.precisions_cholesky_ = torch.linalg.inv(roots).mT.numpy()
    expected = torch.from_numpy(other.score_samples(x.flatten(1).numpy()))
    torch.testing.assert_close(result.log_px, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.log_px(x).detach(), expected, rtol=1e-10, atol=1e-10)
    shares = torch.from_numpy(other.predict_proba(x.flatten(1).numpy()))
    torch.testing.assert_close(model.responsibilities(x).detach(), shares, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_em_never_falls_and_is_scikit_learns(covariance: str) -> None:
    """From the same start, the same parameters after 20 iterations, and a mean log p(x) that rises
    at every one.
    """
    x = clusters()
    torch.manual_seed(0)
    model = models.GaussianMixture((2, 2), 3, covariance, min_scale=1e-6).double()
    model.start_from(x)
    law = model.law(torch.arange(3))
    if covariance == "diagonal":
        precisions = law.base_dist.scale.flatten(1).square().reciprocal()
    else:
        precisions = torch.linalg.inv(law.base_dist.scale_tril @ law.base_dist.scale_tril.mT)
    start = {
        "weights_init": model.logits.softmax(-1).detach().numpy(),
        "means_init": model.loc.detach().numpy(),
        "precisions_init": precisions.detach().numpy(),
    }
    kind = "diag" if covariance == "diagonal" else "full"
    other = Sklearns(3, covariance_type=kind, reg_covar=0.0, max_iter=1, warm_start=True, **start)
    history = model.fit_em(x, num_iters=20)
    with pytest.warns(UserWarning, match="did not converge"):
        other.fit(x.flatten(1).numpy())
    other.max_iter, other.tol = 19, 0.0
    with pytest.warns(UserWarning, match="did not converge"):
        other.fit(x.flatten(1).numpy())
    assert len(history) == 21
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(history))
    assert history[-1] > history[0] + 0.1
    assert history[-1] == pytest.approx(float(model.log_px(x).mean().detach()), abs=1e-12)
    torch.testing.assert_close(
        model.loc.detach(), torch.from_numpy(other.means_), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(
        model.logits.softmax(-1).detach(), torch.from_numpy(other.weights_), rtol=1e-6, atol=1e-6
    )
    assert history[-1] == pytest.approx(other.score(x.flatten(1).numpy()), abs=1e-8)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_em_stays_bounded_on_data_without_spread(covariance: str) -> None:
    """Pixels that never vary, more components than kinds of images: the floor of the scales holds,
    and EM still rises.
    """
    x = torch.zeros(40, 2, 2, dtype=torch.float64)
    x[20:, 0, 0] = 1.0
    torch.manual_seed(0)
    model = models.GaussianMixture((2, 2), 2, covariance, min_scale=0.1).double()
    history = model.fit_em(x, num_iters=5)
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(history))
    best = 4 * float(torch.distributions.Normal(0.0, 0.1001).log_prob(torch.tensor(0.0))) + np.log(
        0.5
    )
    assert history[-1] == pytest.approx(best, abs=2e-2)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_more_components_than_kinds_of_images(covariance: str) -> None:
    """Some start on top of others, none on nothing, and the density stays that of the two kinds."""
    x = torch.zeros(40, 2, 2)
    x[20:] = 1.0
    torch.manual_seed(0)
    model = models.GaussianMixture((2, 2), 5, covariance, min_scale=0.1)
    model.start_from(x)
    assert float(model.logits.softmax(-1).detach().min()) > 0.01
    history = model.fit_em(x, num_iters=3)
    best = 4 * float(torch.distributions.Normal(0.0, 0.1001).log_prob(torch.tensor(0.0))) + np.log(
        0.5
    )
    assert history[-1] == pytest.approx(best, abs=2e-2)


def test_svi_starts_from_the_data_once_and_reaches_em() -> None:
    """Training begins at k-means, ends where EM does, and a second call goes on instead of starting
    again.
    """
    x = clusters().float()
    torch.manual_seed(0)
    model, guide = models.GaussianMixture((2, 2), 3), guides.Empty()
    untrained = float(model.log_px(x).mean().detach())
    history = pv.fit(
        model,
        guide,
        x,
        num_epochs=40,
        batch_size=100,
        learning_rate=0.03,
        device="cpu",
        progress=False,
    )
    assert history.train[0].elbo > untrained + 5  # the first epoch is one of k-means' means
    assert history.train[-1].kl == 0.0
    em = models.GaussianMixture((2, 2), 3)
    best = em.fit_em(x, num_iters=60)[-1]
    found = float(model.log_px(x).mean().detach())
    assert found == pytest.approx(best, abs=0.02)
    again = pv.fit(
        model,
        guide,
        x,
        num_epochs=1,
        batch_size=600,
        learning_rate=1e-6,
        device="cpu",
        progress=False,
    )
    assert again.train[0].elbo == pytest.approx(found, abs=1e-3)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_generated_images_have_the_mixtures_moments(covariance: str) -> None:
    model = mixture(covariance)
    torch.manual_seed(1)
    with torch.no_grad():
        x, shares, law = (
            model(None, size=40_000),
            model.logits.softmax(-1),
            model.law(torch.arange(3)),
        )
        mean = (shares.reshape(3, 1, 1) * law.mean).sum(0)
    error = (x.mean(0) - mean) / (x.std(0) / len(x) ** 0.5)
    assert x.shape == (40_000, 2, 2) and float(error.abs().max()) < 4.5


def test_a_mixture_of_too_few_images_is_refused() -> None:
    with pytest.raises(pv.UserError, match=r"components=5\) has more components than the 4 images"):
        models.GaussianMixture((2, 2), 5).fit_em(clusters()[:4])


@pytest.mark.parametrize(
    "args",
    [{"components": 0}, {"components": 2.5}, {"covariance": "spherical"}, {"min_scale": 0.0}],
)
def test_a_bad_mixture_is_refused(args: dict[str, Any]) -> None:
    with pytest.raises(pv.UserError) as refusal:
        models.GaussianMixture((2, 2), **args)
    assert next(iter(args)) in str(refusal.value)


# ---- probabilistic PCA


@cache
def linear_images(size: int = 400) -> Tensor:
    """Images of a linear model with two latents, in float64."""
    random = torch.Generator().manual_seed(8)
    weight = torch.randn(9, 2, generator=random, dtype=torch.float64)
    z = torch.randn(size, 2, generator=random, dtype=torch.float64)
    noise = torch.randn(size, 9, generator=random, dtype=torch.float64)
    return (z @ weight.T + 0.4 * noise + 1.0).reshape(size, 3, 3)


def linear(fitted: bool = False, latent_dim: int = 2) -> models.LinearGaussian:
    """In float64."""
    torch.manual_seed(2)
    model = models.LinearGaussian((3, 3), latent_dim).double()
    if fitted:
        model.fit_ml(linear_images())
    return model


def test_maximum_likelihood_is_scikit_learns() -> None:
    """Tipping & Bishop's closed form: scikit-learn's PCA has the same one, and its score."""
    model, x = linear(fitted=True), linear_images()
    other = PCA(2).fit(x.flatten(1).numpy())
    size = len(x)
    # scikit-learn divides by N − 1
    assert float(model.scale.detach() ** 2) == pytest.approx(
        other.noise_variance_ * (size - 1) / size, rel=1e-10
    )
    covariance = model.weight @ model.weight.T + model.scale.square() * torch.eye(
        9, dtype=torch.float64
    )
    expected = torch.from_numpy(other.get_covariance()) * (size - 1) / size
    torch.testing.assert_close(covariance.detach(), expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(model.bias.detach(), x.flatten(1).mean(0), rtol=1e-10, atol=1e-12)


def test_maximum_likelihood_is_the_maximum() -> None:
    """The gradient of the exact log p(x) is zero there, and fit_ml returns that log p(x)."""
    model = linear(fitted=True)
    value = model.log_px(linear_images()).mean()
    gradients = torch.autograd.grad(value, list(model.parameters()))
    assert max(float(g.abs().max()) for g in gradients) < 1e-10
    assert linear().fit_ml(linear_images()) == pytest.approx(float(value.detach()), rel=1e-12)


def test_bayes_theorem_holds() -> None:
    """log p(x | z) + log p(z) − log p(z | x) = log p(x) at any z."""
    model, x = linear(), linear_images()[:20]
    z = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        joint = model.prior().log_prob(z) + model.likelihood(z).log_prob(x)
        torch.testing.assert_close(
            joint - model.posterior(x).log_prob(z), model.log_px(x), rtol=1e-10, atol=1e-10
        )


def test_the_posterior_as_a_guide_has_no_variance() -> None:
    """Every weight is p(x): ESS = K, no Monte Carlo error, the ELBO is log p(x), and k̂ is that of
    constant weights.
    """
    model, x = linear(), linear_images()[:50]
    result = pv.log_marginal(model, guides.ExactPosterior(model), x, num_samples=200, device="cpu")
    torch.testing.assert_close(result.log_px, model.log_px(x).detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        result.ess, torch.full_like(result.ess, 200.0), rtol=1e-10, atol=1e-8
    )
    assert result.se_mc < 1e-10 and result.elbo == pytest.approx(result.mean, abs=1e-10)
    assert not result.exact  # a latent is drawn, if to no effect: the protocol says IW-200


@pytest.mark.parametrize("objective", ["Trace_ELBO", "TraceMeanField_ELBO"])
def test_svi_with_the_posterior_approaches_maximum_likelihood(objective: str) -> None:
    """Gradient ascent on the likelihood; with the KL sampled, the loss of any draw is −log p(x)
    itself, below the maximum.
    """
    x, model = linear_images(), linear()
    best = model.fit_ml(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    history = pv.fit(
        model, guides.ExactPosterior(model), x, objective=objective, num_epochs=60, batch_size=400, learning_rate=0.02,
        device="cpu", progress=False,
    )  # fmt: skip
    found = [-record.loss for record in history.train]
    assert found[0] < best - 1
    assert float(model.log_px(x).mean().detach()) == pytest.approx(best, abs=0.02)
    if objective == "Trace_ELBO":
        assert max(found) <= best + 1e-9


def test_a_mean_field_guide_pays_the_gap() -> None:
    """The best one has the posterior's mean and variances 1/Λ_dd, Λ = M/σ²: its ELBO is ½(Σ log
    Λ_dd − log |Λ|) too low.
    """
    model, x = linear(fitted=True), linear_images()
    guide = guides.MeanField((3, 3), 2, hidden=()).double()
    with torch.no_grad():
        # the maximum's axes are the posterior's own, where there is no gap: turned, they are not
        model.weight.copy_(
            model.weight @ torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
        )
        precision = torch.linalg.inv(model.posterior(x[:1]).covariance_matrix[0])
        gap = 0.5 * float(precision.diagonal().log().sum() - precision.logdet())
        basis = torch.eye(9, dtype=torch.float64).reshape(9, 3, 3)
        origin = model.posterior(torch.zeros_like(basis[:1])).mean
        layer = next(module for module in guide.modules() if isinstance(module, torch.nn.Linear))
        layer.weight.copy_(torch.cat(((model.posterior(basis).mean - origin).T, torch.zeros(2, 9))))
        layer.bias.copy_(torch.cat((origin[0], -precision.diagonal().log() / 2)))
        torch.manual_seed(0)
        weights = log_densities(model, guide, x, 500).log_weights()
        short = model.log_px(x) - weights
    assert gap > 0.01
    error = short.mean(0).std() / len(x) ** 0.5
    assert float(short.mean()) == pytest.approx(gap, abs=4.5 * float(error))


def test_as_many_latents_as_pixels_have_no_maximum() -> None:
    with pytest.raises(pv.UserError, match="fewer latent dimensions than pixels"):
        models.LinearGaussian((2, 2), 4).fit_ml(clusters())
    with pytest.raises(pv.UserError, match="σ is 0"):
        models.LinearGaussian((3, 3), 2).fit_ml(linear_images()[:3])


def test_the_posterior_is_of_a_model_that_has_one() -> None:
    model = models.GenerativeModel(models.StandardNormal(2), models.Bernoulli(2, (3, 3)))
    with pytest.raises(
        pv.UserError, match=r"LinearGaussian\. GenerativeModel has no method posterior"
    ):
        guides.ExactPosterior(model)


def test_the_guide_does_not_own_the_model() -> None:
    """Freezing the model leaves nothing to train, and a checkpoint holds its tensors once."""
    model = linear()
    guide = guides.ExactPosterior(model)
    assert not list(guide.parameters()) and not guide.state_dict()
    with pytest.raises(pv.UserError, match="nothing to train"):
        pv.fit(
            model, guide, linear_images(), num_steps=1, freeze="model", device="cpu", progress=False
        )


# ---- on the command line


@pytest.mark.slow
def test_baselines_stand_in_the_same_table_as_a_vae(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained, evaluated, saved, loaded and compared by words alone: is the VAE better than a
    mixture?
    """
    common = [
        "--likelihood",
        "Gaussian",
        "--num-samples",
        "50",
        "--eval-images",
        "100",
        "--quiet",
        "--no-pictures",
    ]
    runs = {
        "mixture": [
            "--model",
            "GaussianMixture(components=8)",
            "--guide",
            "Empty",
            "--steps",
            "60",
        ],
        "ppca": [
            "--model",
            "LinearGaussian",
            "--guide",
            "ExactPosterior",
            "--latent-dim",
            "5",
            "--steps",
            "60",
        ],
        "vae": ["--net", "MLP(hidden=(32,))", "--latent-dim", "5", "--steps", "60"],
    }
    for name, options in runs.items():
        given = common if name == "vae" else common[2:]
        assert entry.main(["train", *options, *given, "--out", str(tmp_path / name)]) == 0
    capsys.readouterr()
    mixture_run = json.loads((tmp_path / "mixture" / "results.json").read_text())["evaluations"][0]
    assert mixture_run["se_mc"] == 0.0 and mixture_run["protocol"]["estimator"] == "exact"
    assert not {"likelihood", "prior", "net", "latent_dim"} & mixture_run["protocol"].keys()
    model, guide = pv.load(tmp_path / "mixture")
    assert isinstance(model, models.GaussianMixture) and isinstance(guide, guides.Empty)
    assert not model.waits_for_data
    names = [str(tmp_path / name) for name in runs]
    assert entry.main(["compare", *names, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {Path(row["name"]).name for row in rows} == runs.keys()
    by_name = {Path(row["name"]).name: row for row in rows}
    assert (
        by_name["mixture"]["se_mc"] == 0.0
        and by_name["ppca"]["se_mc"] < 1e-4 < by_name["vae"]["se_mc"]
    )


@pytest.mark.parametrize(
    "option", [["--prior", "MixtureOfGaussians"], ["--likelihood", "Gaussian"]]
)
@pytest.mark.parametrize("model", ["GaussianMixture", "LinearGaussian"])
def test_a_part_that_the_model_does_not_take_is_refused(
    model: str, option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A word without an effect would stand in the protocol all the same."""
    guide = {"GaussianMixture": "Empty", "LinearGaussian": "ExactPosterior"}[model]
    assert (
        entry.main(
            ["train", "--model", model, "--guide", guide, *option, "--out", str(tmp_path / "run")]
        )
        == 2
    )
    assert f"the model {model} takes no {option[0][2:]}" in capsys.readouterr().err
