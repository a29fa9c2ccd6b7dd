"""Missing entries: the objective and log p(x_obs) against exact values, and the ways to mark them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae import guides, models, objectives
from pyro_vae.cli.entry import main
from pyro_vae.data.datasets import load
from pyro_vae.data.observations import Dynamic, Threshold
from pyro_vae.data.transforms import observe
from pyro_vae.errors import UserError
from pyro_vae.nn import make_encoder

SHAPE = (2, 3)
SEEN = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(0)) > 0.4
QUIET: dict[str, Any] = {"device": "cpu", "compile": "off"}


def linear() -> tuple[Any, Tensor, Tensor]:
    """A linear-Gaussian model, images of it with holes, and their exact log p(x_obs)."""
    torch.manual_seed(1)
    model = models.LinearGaussian(SHAPE, 2, missing="nan").double()
    with torch.no_grad():
        x = model(None, size=len(SEEN))
        covariance = model.weight @ model.weight.T + model.scale.square() * torch.eye(6).double()
        exact = []
        for row, seen in zip(x.flatten(1), SEEN.flatten(1), strict=True):
            centred, block = (row - model.bias)[seen], covariance[seen][:, seen]
            quadratic = centred @ torch.linalg.solve(block, centred)
            exact.append(-0.5 * (quadratic + (2 * torch.pi * block).logdet()))
    return model, x.masked_fill(~SEEN, torch.nan), torch.stack(exact)


def test_every_bound_is_the_exact_one_at_the_posterior() -> None:
    """p(z | x_obs) in closed form: the ELBO, MIWAE's bound and each log weight are log p(x_obs)."""
    model, x, exact = linear()
    guide = guides.ExactPosterior(model)
    torch.testing.assert_close(model.log_px(x), exact)
    for objective in (objectives.Trace_ELBO(), objectives.IWAE(5)):
        torch.testing.assert_close(objective(model, guide)(x), -exact.sum())
    found = pv.log_marginal(model, guide, x, num_samples=2, **QUIET)
    torch.testing.assert_close(found.log_px, exact)
    assert found.protocol["quantity"] == "log p(x_obs)" and "log p(x_obs)" in str(found)


@pytest.mark.parametrize("given", [{}, {"mask_channel": True}], ids=["zeros", "mask"])
def test_the_estimate_is_that_of_what_is_seen(given: dict[str, Any]) -> None:
    """By a network that sees zeros, and the mask."""
    model, x, exact = linear()
    guide = guides.MeanField(SHAPE, 2, missing="nan", hidden=(4,), **given).double()
    found = pv.log_marginal(model, guide, x, num_samples=2000, **QUIET)
    assert ((found.log_px - exact).abs() < 5 * found.se + 0.02).all()


def test_a_field_called_mask_is_nan() -> None:
    """In training, of a validation set, in an evaluation and in `impute`; whole numbers too."""
    x = torch.bernoulli(torch.full((40, *SHAPE), 0.5), generator=torch.Generator().manual_seed(0))
    marked, found = x.masked_fill(~SEEN, torch.nan), []
    for given, more in ((x.long(), {"mask": SEEN}), (marked, {})):
        torch.manual_seed(0)
        model = models.GenerativeModel(
            models.StandardNormal(2), models.Bernoulli(SHAPE, 2, missing="nan", hidden=(4,))
        )
        guide = guides.MeanField(SHAPE, 2, missing="nan", hidden=(4,))
        valid = {"x": given[:9], **{name: value[:9] for name, value in more.items()}}
        steps: dict[str, Any] = {"num_steps": 4, "batch_size": 10, "progress": False, **QUIET}
        history = pv.fit(model, guide, given, objective="IWAE(3)", x_valid=valid, **steps, **more)
        restored = pv.impute(model, guide, given, num_samples=2, num_steps=4, **more)
        assert torch.equal(restored.samples[0][SEEN], x[SEEN])
        scores = pv.log_marginal(model, guide, given, num_samples=3, **QUIET, **more)
        record = history.valid[-1]
        found.append([torch.tensor([record.elbo]), restored.samples, scores.log_px])
    assert all(map(torch.equal, *found))


def test_a_network_gets_zeros_and_the_mask() -> None:
    x = torch.randn(5, *SHAPE)
    x[SEEN[:5]] = torch.nan
    seen = ~x.isnan()
    net: Any = make_encoder(
        "MLP", SHAPE, 3, missing="nan", mask_channel=True, input_scale=4.0, hidden=(4,)
    )
    assert net.net.in_shape == (4, 3)
    expected = net.net(torch.cat((x.nan_to_num() / 4.0, seen.float()), 1))
    torch.testing.assert_close(net(x), expected)


def test_a_pair_of_whole_images_refuses_holes_in_a_line() -> None:
    """In whichever of them the NaN is, and where it is drawn at each visit."""
    x = torch.full((60, *SHAPE), 0.5)
    x[50, 0, 1] = torch.nan
    model = models.GenerativeModel(models.StandardNormal(2), models.Bernoulli(SHAPE, 2))
    with pytest.raises(UserError, match=r"image 50 has a NaN.*--missing nan"):
        pv.fit(model, guides.MeanField(SHAPE, 2), x, binarize="dynamic", num_steps=2)
    with pytest.raises(UserError, match="missing 'zero'"):
        models.Bernoulli(SHAPE, 2, missing="zero")
    with pytest.raises(UserError, match=r"covariance='full'"):
        models.GaussianMixture(SHAPE, 2, covariance="full", missing="nan")


# ---- as stored


@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_stored_holes(kind: str, tmp_path: Path) -> None:
    """NaN, or an empty field; the others of whole numbers are levels; refused without the option."""
    stored = np.random.default_rng(0).integers(0, 17, (20, 6)).astype(np.float32)
    stored[1, 2] = stored[3, 0] = np.nan
    path = tmp_path / f"it.{kind}"
    if kind == "npz":
        np.savez(path, train=stored[:10], test=stored[10:])
    else:
        lines = [",".join("" if np.isnan(v) else f"{v:g}" for v in row) for row in stored]
        path.write_text("\n".join(["a,b,c,d,e,f", *lines]))
    with pytest.raises(UserError, match="--missing nan"):
        load(path)
    data = load(path, missing="nan").with_levels(17)
    holes = data.train.isnan()
    assert holes.sum() + data.test.isnan().sum() == 2 and data.levels == 17
    for how in (Dynamic(17), Threshold(17)):
        binary = how(data.train)
        assert torch.equal(binary.isnan(), holes)
        assert ((binary == 0) | (binary == 1))[~holes].all()
    levels = observe(data, observes="levels").x_train
    assert torch.equal(levels[~holes], data.train[~holes]) and levels[holes].isnan().all()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table with empty fields: trained, scored and named; evaluated again from its run."""
    values = np.random.default_rng(0).standard_normal((60, 3))
    lines = [",".join(f"{v:.2f}" if v > -1 else "" for v in row) for row in values]
    table = tmp_path / "it.csv"
    table.write_text("\n".join(["a,b,c", *lines]))
    words = f"--data {table} --missing nan --likelihood Gaussian --steps 5 --num-samples 10"
    run, size = str(tmp_path / "run"), ["--latent-dim", "2", "--net", "MLP(mask_channel=True)"]
    short = ["--batch-size", "20", "--no-pictures", "--quiet", "--out", run]
    assert main(["train", *words.split(), *size, *short]) == 0
    out = capsys.readouterr().out
    assert out.startswith("log p(x_obs) ≥") and "missing left out (NaN)" in out
    again = "--method refine --num-steps 3 --num-images 4 --num-samples 5 --no-pictures --quiet"
    assert main(["evaluate", run, *again.split()]) == 0
