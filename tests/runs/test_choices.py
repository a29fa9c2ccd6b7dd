"""One road for every choice: what is misspelt in any slot is refused in a line, and nothing that no
part reads is recorded.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_vae import UserError
from pyro_vae.choices import registry
from pyro_vae.choices.lookup import NAMESPACES
from pyro_vae.cli.entry import main
from pyro_vae.data import datasets
from pyro_vae.data.observations import Dynamic
from pyro_vae.data.transforms import doubts, observe
from pyro_vae.runs.config_file import read_config
from pyro_vae.runs.experiment import prepare
from pyro_vae.runs.options import Train
from pyro_vae.training.options import observations

MISSPELT = {
    "model": ("GaussianMixture(component=3)", "components"),
    "prior": ("VampPrior(componets=3)", "components"),
    "likelihood": ("Gaussian(scal=learned)", "scale"),
    "guide": ("IAF(dept=2)", "depth"),
    "objective": ("Trace_ELBO(num_particle=2)", "num_particles"),
    "net": ("MLP(hid=(3,))", "hidden"),
    "optimizer": ("Adam(ep=1e-4)", "eps"),
    "schedule": ("cosine(warm=0.1)", "warmup"),
    "warmup": ("Cyclical(cycle=3)", "cycles"),
    "proposal": ("Defensive(scal=2)", "scale"),
    "data": ("digits(sed=3)", "digits"),
}
"""A choice of each slot with one misspelt argument, and what was meant; data take no arguments."""

SMALL = ["--steps", "2", "--latent-dim", "2", "--compile", "off", "--quiet", "--no-pictures"]


def test_every_slot_has_its_misspelt_choice() -> None:
    assert set(MISSPELT) == set(NAMESPACES)


@pytest.mark.parametrize("slot", MISSPELT)
def test_a_misspelt_argument_is_refused(
    slot: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On the command line, before anything is made; a proposal is asked for by `evaluate`."""
    monkeypatch.chdir(tmp_path)
    spec, meant = MISSPELT[slot]
    if slot == "proposal":
        with pytest.raises(UserError, match=f"did you mean '{meant}'"):
            registry.build(slot, spec)
        return
    option = {"warmup": "kl-warmup"}.get(slot, slot)
    assert main(["train", f"--{option}", spec, *SMALL]) == 2
    said = capfd.readouterr().err
    assert f"did you mean '{meant}'" in said and said.count("\n") == 1, said
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "options",
    [
        {"likelihood": "Gaussian(net=MLP(hid=3))"},
        {"likelihood": "Gaussian(net='MLP(hid=3)')"},
        {"guide": "MeanField(net=MLP(hid=3))"},
        {"guide": "MeanField(hid=3)"},
        {"prior": "VampPrior(encoder=MeanField(hid=3))"},
    ],
)
def test_a_misspelt_network_inside_a_part_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="did you mean 'hidden'"):
        prepare(Train(latent_dim=2, **options))


def test_a_misspelt_choice_in_a_configuration_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('net = "MLP(hid=(3,))"\nlatent_dim = 2\n')
    with pytest.raises(UserError, match="did you mean 'hidden'"):
        prepare(Train(**read_config(config)))


def test_a_part_that_takes_a_network_without_arguments_is_given_none() -> None:
    class Own:
        slot = "guide"

        def __init__(self, net: Any = "MLP") -> None:
            self.net = net

    assert registry.build("guide", Own, net="Conv").net == "Conv"
    with pytest.raises(UserError, match=r"unknown argument of net MLP\(hidden=3\) of guide Own"):
        registry.build("guide", Own, net="MLP(hidden=3)")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"net": "Conv"}, "--net Conv: the model GaussianMixture takes no net, nor does the guide"),
        ({"latent_dim": 3}, "--latent-dim 3: the model GaussianMixture takes no latent_dim"),
        ({"prior": "VampPrior"}, "--prior VampPrior: the model GaussianMixture takes no prior:"),
    ],
)
def test_an_option_that_no_part_reads_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        prepare(Train(model="GaussianMixture", guide="Empty", **options))
    prepare(Train(model="GaussianMixture", guide="Empty"))


# ---- conventions against which the data speak


def stored(images: Any) -> datasets.ImageData:
    return datasets.random_split("own", images)


GREY = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8)
COUNTS = np.random.default_rng(0).poisson(4, (40, 5)).astype(np.uint8)
COLOUR = np.random.default_rng(0).integers(0, 256, (40, 3, 4, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    ("images", "observes", "remedies"),
    [
        (GREY, "binary", []),
        (GREY // 16, "binary", ["--levels 16", "--likelihood Poisson"]),
        (GREY // 16, "levels", ["--levels 16"]),
        (GREY // 16, "real", ["--levels 16"]),
        (COUNTS, "binary", [f"--levels {COUNTS.max() + 1}", "--likelihood Poisson"]),
        (COUNTS, "counts", []),
        (COLOUR, "binary", ["each colour channel is binarized", "--likelihood Gaussian"]),
        (COLOUR, "real", []),
        (COLOUR // 128, "binary", []),
        (GREY / 255.0, "binary", []),
    ],
)
def test_what_speaks_against_a_convention_is_said(
    images: Any, observes: str, remedies: list[str]
) -> None:
    data = stored(images)
    said = doubts(data, observe(data, "auto", observes), observes, False)
    assert all(each in said for each in remedies) and bool(said) == bool(remedies)


def test_levels_that_are_given_are_used_and_in_the_protocol() -> None:
    """A pixel's probability is its level over the largest one."""
    data = stored(GREY // 16).with_levels(16)
    observed = observe(data, "auto", "binary")
    assert observed.observe is not None and observed.protocol["levels"] == "16"
    np.testing.assert_allclose(observed.observe.expected(data.train), data.train / 15, rtol=1e-6)
    assert doubts(data, observed, "binary", True) == ""
    with pytest.raises(UserError, match="up to 15"):
        stored(GREY // 16).with_levels(9)
    with pytest.raises(UserError, match="floats, and floats have no levels"):
        stored(GREY / 255.0).with_levels(9)


def test_counts_are_observed_as_they_are() -> None:
    """Without bits per dimension or levels; beyond 255 as floats, where they are whole."""
    for images in (COUNTS, 1000.0 * COUNTS):
        observed = observe(data := stored(images), "auto", "counts")
        assert observed.observe is None and observed.bits_offset is None
        assert (observed.x_train == data.train).all() and "levels" not in observed.protocol
        assert "whole numbers as stored" in observed.protocol["observation"]
    with pytest.raises(UserError, match="this likelihood is for whole numbers from 0"):
        observe(stored(COUNTS + 0.5), "auto", "counts")


def test_training_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command in its line, and `fit` where it takes 8 bits for 256 levels itself."""
    monkeypatch.chdir(tmp_path)
    np.save("few.npy", GREY // 16)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        small = ["--batch-size", "8", "--num-samples", "5", "--net", "MLP(hidden=2)", *SMALL]
        assert main(["train", "--data", "few.npy", *small, "--out", "run"]) == 0
    said = capfd.readouterr().err
    assert said.count("warning: few.npy") == said.count("\n") == 1 and "--levels 16" in said
    with pytest.warns(UserWarning, match=r"binarize=Dynamic\(16\)"):
        observation, _ = observations("dynamic", GREY // 16)
    assert observation == Dynamic(256) == observations("dynamic", GREY)[0]
