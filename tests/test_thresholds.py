"""Every threshold at which a result says something is held on both of its sides."""

from __future__ import annotations

from math import log
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_vae import LogMarginal, ais, guides, log_marginal, models
from pyro_vae.analysis.gibbs import Restored
from pyro_vae.analysis.mutual_information import Information
from pyro_vae.analysis.representation import ActiveUnits, Diagnostics, DimensionKL, RateDistortion
from pyro_vae.analysis.sbc import SBC
from pyro_vae.evaluation.ais import AnnealedMarginal
from pyro_vae.evaluation.bdmc import BDMC
from tests.support.exact import ppca

NUMBER = 200


def given(**changed: Any) -> dict[str, Any]:
    """Figures of 200 images without anything to say."""
    one = torch.ones(NUMBER, dtype=torch.float64)
    plain = {
        "log_px": -90 * one,
        "se": 0.1 * one,
        "ess": 50 * one,
        "khat": 0.1 * one,
        "elbo_px": -91 * one,
        "max_weight_share": 0.1 * one,
        "debiased_px": -90 * one,
        "curve": {10: -90.5, 50: -90.0, 100: -90.0},
        "num_samples": 100,
    }
    return {**plain, **changed}


def some(number: int, value: float, others: float) -> Tensor:
    """``value`` in so many of the images."""
    return torch.where(torch.arange(NUMBER) < number, value, others).double()


def annealed(number: int, acceptance: float) -> AnnealedMarginal:
    """Chains that accept so much in so many of the images."""
    return AnnealedMarginal(
        **given(), acceptance=some(number, acceptance, 0.6), step_size=torch.ones(NUMBER)
    )


def restored(number: int, acceptance: float) -> Restored:
    """Chains whose proposals are accepted so often in so many of the images."""
    x = torch.zeros(NUMBER, 2)
    return Restored(x[None], x[None], x, x, x, some(number, acceptance, 0.6), "metropolis", 10)


def diagnosed(variance: float = 1.0, cost: float = 1.0, information: float = 1.0) -> Diagnostics:
    """Two units, the second one with this variance and KL, and a mutual information of N = 200
    images.
    """
    return Diagnostics(
        ActiveUnits({"z": torch.tensor([1.0, variance])}, 20),
        RateDistortion(2.0, 0.1, 50.0, 0.1, -52.0, 0.1, NUMBER, 20),
        DimensionKL({"z": torch.tensor([1.0, cost])}, {"z": "analytic"}),
        Information(information, 0.1, 0.1, 0.1, 1.0, 0.1, NUMBER),
    )


def ranked(p: float) -> Any:
    """Ranks of two dimensions, the smallest p-value being this."""
    ranks = torch.arange(100).expand(2, -1).T
    lines = str(
        SBC({"z": ranks}, {"z": torch.tensor([0.5, p], dtype=torch.float64)}, 99)
    ).splitlines()
    return SimpleNamespace(warnings=tuple(line for line in lines if "warning" in line))


CASES: dict[str, tuple[str, Any, Any]] = {  # key words, what is just not told, what is
    "one draw in 1% of the images": (
        "one draw has more than half",
        LogMarginal(**given(max_weight_share=some(2, 0.6, 0.1))),
        LogMarginal(**given(max_weight_share=some(3, 0.6, 0.1))),
    ),
    "one draw over half": (
        "one draw has more than half",
        LogMarginal(**given(max_weight_share=some(NUMBER, 0.49, 0.1))),
        LogMarginal(**given(max_weight_share=some(NUMBER, 0.51, 0.1))),
    ),
    "a rise": (
        "still rises",
        LogMarginal(**given(curve={50: -90.04, 100: -90.0})),
        LogMarginal(**given(curve={50: -90.06, 100: -90.0})),
    ),
    "a fall is no rise": (
        "still rises",
        LogMarginal(**given(curve={50: -89.5, 100: -90.0})),
        LogMarginal(**given(curve={50: -91.0, 100: -90.0})),
    ),
    "bias": (
        "estimated bias",
        LogMarginal(**given(se=some(NUMBER, (2 * 0.049) ** 0.5, 0.0))),
        LogMarginal(**given(se=some(NUMBER, (2 * 0.051) ** 0.5, 0.0))),
    ),
    "infinite": (
        "not finite",
        LogMarginal(**given()),
        LogMarginal(**given(log_px=some(1, -torch.inf, -90.0), curve={})),
    ),
    "the other infinity": (
        "not finite",
        LogMarginal(**given(log_px=-1e300 * torch.ones(NUMBER, dtype=torch.float64), curve={})),
        LogMarginal(**given(log_px=some(1, torch.inf, -90.0), curve={})),
    ),
    "one draw": (
        "one draw for each image",
        LogMarginal(**given(num_samples=2, curve={})),
        LogMarginal(**given(num_samples=1, curve={})),
    ),
    "acceptance": ("HMC accepts", annealed(NUMBER, 0.21), annealed(NUMBER, 0.19)),
    "acceptance in 1% of the images": ("HMC accepts", annealed(2, 0.1), annealed(3, 0.1)),
    "a restoration's": ("hardly move", restored(NUMBER, 0.051), restored(NUMBER, 0.049)),
    "a restoration's in 1% of the images": ("hardly move", restored(2, 0.01), restored(3, 0.01)),
    "an active unit": ("1 of 2 units are inactive", diagnosed(0.0101), diagnosed(0.0099)),
    "an idle unit that costs": (
        "inactive units of z cost",
        diagnosed(0.0, 0.049),
        diagnosed(0.0, 0.051),
    ),
    "an active unit that costs": (
        "inactive units of z cost",
        diagnosed(0.02, 3.0),
        diagnosed(0.005, 3.0),
    ),
    "a ceiling": (
        "at its ceiling",
        diagnosed(information=log(200) - 1.01),
        diagnosed(information=log(200) - 0.99),
    ),
    "ranks": ("not the model's posterior", ranked(0.00051), ranked(0.00049)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_result_says_it_on_one_side_alone(name: str) -> None:
    words, below, above = CASES[name]
    assert not any(words in text for text in below.warnings)
    assert any(words in text for text in above.warnings)


def test_bounds_that_cross_are_told_in_their_line() -> None:
    lower = torch.linspace(-95, -85, NUMBER, dtype=torch.float64)
    kept: dict[str, Any] = {"acceptance": torch.ones(NUMBER), "x": torch.zeros(NUMBER, 2)}
    kept |= {"num_samples": 8, "protocol": {"num_steps": 10}}
    below, above = (BDMC(lower_px=lower, upper_px=lower + g, **kept) for g in (-0.001, 0.001))
    assert "the bounds cross" in str(below) and "the bounds cross" not in str(above)


def test_high_khat_is_above_seven_tenths_of_those_that_have_one() -> None:
    found = LogMarginal(
        **given(khat=torch.tensor([0.69, 0.71, 0.7, torch.nan, -torch.inf, torch.inf]))
    )
    assert found.high_khat == 2 / 5
    nothing = LogMarginal(**given(khat=torch.full((NUMBER,), torch.nan)))
    assert nothing.high_khat != nothing.high_khat


def test_an_interval_is_sound_below_khat_of_a_half_with_300_draws_worth() -> None:
    figures = {"khat": torch.tensor([0.49, 0.5, 0.49, torch.nan, -torch.inf]).double()}
    figures["ess"] = torch.tensor([300.0, 900.0, 299.9, 900.0, 300.0]).double()
    same = {name: value[:5] for name, value in given().items() if isinstance(value, Tensor)}
    found = LogMarginal(**{**given(), **same, **figures})
    assert list(found.per_image()["flag"]) == [
        "",
        "interval unsound",
        "interval unsound",
        "interval unsound",
        "",
    ]


@pytest.mark.parametrize("layer", ["batchnorm", "dropout", "neither"])
def test_a_module_in_train_mode_is_told_of_and_one_in_eval_mode_is_not(layer: str) -> None:
    """In either estimate; and the modules are left in the mode that they had."""
    made = {"batchnorm": nn.BatchNorm1d(6), "dropout": nn.Dropout(0.3), "neither": nn.LayerNorm(6)}[
        layer
    ].double()
    case = ppca(4)

    class Guide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = made

        def forward(self, x: Tensor) -> None:
            case.guide(self.layer(x))

    guide = Guide()
    for training in (True, False):
        guide.train(training)
        for found in (
            log_marginal(case.model, guide, case.x, num_samples=5, device="cpu", compile="off"),
            ais(
                case.model, guide, case.x, num_steps=1, num_chains=2, num_leapfrog=1, compile="off"
            ),
        ):
            told = [note for note in found.notes if "train mode" in note]
            assert len(told) == (training and layer != "neither")
            assert all(type(made).__name__ in note for note in told)
        assert made.training == training


def test_our_own_networks_are_told_of_in_train_mode_alone() -> None:
    net: dict[str, Any] = {"net": "Conv", "channels": (3,)}
    model = models.GenerativeModel(models.StandardNormal(2), models.Bernoulli(2, (1, 4, 4), **net))
    guide = guides.MeanField((1, 4, 4), 2, **net)
    x = torch.zeros(3, 1, 4, 4)
    for training in (True, False):
        model.train(training), guide.train(training)
        notes = log_marginal(model, guide, x, num_samples=5, device="cpu", compile="off").notes
        assert any("BatchNorm2d in train mode" in note for note in notes) == training
