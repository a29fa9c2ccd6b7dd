"""What a model observes: the laws of each observation, and what `observe` decides, says and leaves
alone.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.data.image_data import ImageData, own_split, sha256
from pyro_vae.data.observations import Dequantize, Dynamic, Grey, Levels, Observation, Threshold
from pyro_vae.data.transforms import MODES, OBSERVES, observe
from pyro_vae.errors import UserError
from tests.support.grids import thinned


def images(name: str = "grey", number: int = 40) -> ImageData:
    """Small sets of the kinds that differ: 8-bit grey, 17 levels, binary, floats in [0, 1], real
    floats.
    """
    random = np.random.default_rng(0)
    shape = (2 * number, 3, 4)
    arrays: dict[str, Any] = {
        "grey": random.integers(0, 256, shape).astype(np.uint8),
        "digits": random.integers(0, 17, shape).astype(np.uint8),
        "binary": random.integers(0, 2, shape).astype(bool),
        "black and white": (random.integers(0, 2, shape) * 255).astype(np.uint8),
        "unit": random.uniform(size=shape),
        "real": random.normal(size=shape),
    }
    pixels = arrays[name]
    return own_split(
        name, pixels[:number], pixels[number:], levels=17 if name == "digits" else None
    )


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dynamic_has_the_grey_level_as_its_mean(levels: int) -> None:
    draws, stored = 4000, torch.arange(levels, dtype=torch.uint8)
    x = Dynamic(levels)(stored.expand(draws, -1), torch.Generator().manual_seed(1))
    probability = stored / (levels - 1)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    error = (x.mean(0) - probability).abs()
    assert (
        error <= 4 * (probability * (1 - probability) / draws).sqrt()
    ).all()  # at 0 and 1: exactly
    assert x.dtype == torch.float32


def test_dynamic_takes_floats_as_probabilities() -> None:
    x = Dynamic(None)(
        torch.tensor([0.0, 0.25, 1.0]).expand(4000, 3), torch.Generator().manual_seed(1)
    )
    assert x.mean(0).tolist() == pytest.approx(
        [0.0, 0.25, 1.0], abs=4 * math.sqrt(0.25 * 0.75 / 4000)
    )


@pytest.mark.parametrize(
    ("levels", "edge"), thinned([2, 3, 10, 17, 100, 255, 256], [0.0, 2.0**-24, 0.5, 1 - 2.0**-24])
)
def test_dequantized_images_floor_back_to_their_levels(levels: int, edge: float) -> None:
    stored = torch.arange(levels, dtype=torch.int64).to(torch.uint8)
    x = Dequantize(levels).place(stored, torch.full((levels,), edge))
    assert torch.equal((x * levels).floor().to(torch.uint8), stored)
    assert (x > 0).all() and (x < 1).all()


def test_dequantization_noise_is_uniform() -> None:
    """Kolmogorov and Smirnov: √n times the largest distance from the uniform law is above 1.95 once
    in 1000.
    """
    number = 20000
    x = Dequantize(256)(
        torch.full((number,), 77, dtype=torch.uint8), torch.Generator().manual_seed(1)
    )
    noise = (x * 256 - 77).sort().values
    assert (noise - (torch.arange(number) + 0.5) / number).abs().max() * math.sqrt(number) < 1.95


def test_the_log_density_of_uniform_noise_is_the_bits_offset() -> None:
    """A uniform density on (0, 1) codes L levels in log2(L) bits per dimension."""
    for levels in (17, 256):
        assert Dequantize(levels).bits_offset == math.log2(levels)
    assert Levels(256).bits_offset == 0.0
    assert Dynamic(256).bits_offset is Threshold(256).bits_offset is Grey(256).bits_offset is None


def test_threshold_grey_and_levels() -> None:
    stored = torch.tensor([0, 127, 128, 255], dtype=torch.uint8)
    assert Threshold(256)(stored).tolist() == [0, 0, 1, 1]
    assert Grey(256)(stored).tolist() == (stored.double() / 255).float().tolist()
    assert Levels(256)(stored).tolist() == [0, 127, 128, 255]
    assert torch.equal(Grey(None)(torch.tensor([-3.5, 7.0])), torch.tensor([-3.5, 7.0]))
    assert all(
        each(stored).dtype == torch.float32 for each in (Threshold(256), Grey(256), Levels(256))
    )


@pytest.mark.parametrize("levels", [3, 5, 17, None])
def test_a_grey_level_of_exactly_a_half_is_not_above_it(levels: int | None) -> None:
    half = 0.5 if levels is None else (levels - 1) // 2
    least = 2.0**-24 if levels is None else 1
    stored = torch.tensor(
        [half - least, half, half + 2 * least],
        dtype=torch.float32 if levels is None else torch.uint8,
    )
    assert Threshold(levels)(stored).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "observation", [Dynamic(256), Dequantize(256), Threshold(256), Grey(256), Levels(256)]
)
def test_observations_trace_and_replay(observation: Observation) -> None:
    batch = images().train
    graph = make_fx(observation)(batch)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = observation(batch)
        torch.manual_seed(3)
        assert torch.equal(graph(batch), expected)


@pytest.mark.parametrize("observation", [Dynamic(256), Dequantize(256)])
def test_fixed_draws_have_their_own_stream(observation: Observation) -> None:
    stored = images(number=200).test
    state = torch.get_rng_state()
    first = observation.fixed(stored, 0, "test")
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(observation.fixed(stored, 0, "test"), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(
        observation.fixed(stored[:70], 0, "test"), first[:70]
    )  # not of the images that follow
    assert not torch.equal(observation.fixed(stored, 1, "test"), first)
    assert not torch.equal(observation.fixed(stored, 0, "validation"), first)


AUTO: list[tuple[str, str, str]] = [
    ("grey", "binary", "dynamic binarization"),
    ("digits", "binary", "dynamic binarization"),
    ("binary", "binary", "2 grey levels"),
    ("black and white", "binary", "256 grey levels"),
    ("unit", "binary", "dynamic binarization"),
    ("grey", "real", "uniform dequantization, 256"),
    ("grey", "unit", "uniform dequantization, 256"),
    ("digits", "unit", "uniform dequantization, 17"),
    ("unit", "unit", "values as stored"),
    ("unit", "real", "values as stored"),
    ("real", "real", "values as stored"),
    ("grey", "levels", "integer levels 0 to 255"),
    ("digits", "levels", "integer levels 0 to 16"),
]


@pytest.mark.parametrize(("name", "observes", "words"), AUTO)
def test_auto_goes_by_the_likelihood_and_says_so(name: str, observes: str, words: str) -> None:
    data = images(name)
    result = observe(data, "auto", observes)
    assert (
        result.protocol["observation"].startswith(words)
        and "auto" in result.protocol["observation"]
    )
    assert result.protocol["sha256"] == sha256(result.x_test)
    assert result.protocol["data_sha256"] == data.sha256
    assert result.protocol["data"] == name and result.protocol["split"] == "the set's own split"
    assert result.x_test.dtype == torch.float32 and result.x_test.shape == data.test.shape
    assert result.levels == data.levels
    if observes == "binary":
        assert set(result.x_test.unique().tolist()) == {0.0, 1.0}
    if result.observe is None:
        assert result.x_train.dtype == torch.float32
    else:
        assert (
            result.x_train is data.train
            and "test drawn once, seed 0" in result.protocol["observation"]
        )


@pytest.mark.parametrize(
    ("name", "mode", "observes", "words"),
    [
        ("grey", "none", "binary", ["train image 0", "grey value", "--binarize dynamic"]),
        ("unit", "none", "binary", ["train image 0", "--binarize dynamic"]),
        ("real", "auto", "binary", ["train image 0", "[0, 1]", "Gaussian"]),
        ("real", "none", "binary", ["[0, 1]", "Gaussian"]),
        ("real", "dynamic", "real", ["dynamic binarization", "[0, 1]"]),
        ("real", "threshold", "binary", ["threshold", "[0, 1]"]),
        ("real", "auto", "unit", ["[0, 1]"]),
        ("unit", "auto", "levels", ["uint8"]),
        ("grey", "Dynmic", "binary", ["did you mean 'dynamic'"]),
    ],
)
def test_what_cannot_be_observed_is_refused(
    name: str, mode: str, observes: str, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        observe(images(name), mode, observes)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_first_offending_value_is_the_one_named() -> None:
    pixels = np.zeros((5, 4))
    pixels[3, 2], pixels[4, 0] = 1.5, 0.25
    data = own_split("it", pixels, np.zeros((2, 4)))
    with pytest.raises(UserError, match=r"it, train row 3: value 1\.5"):
        observe(data, "none", "binary")
    data = own_split("it", np.zeros((2, 4)), pixels)
    with pytest.raises(UserError, match=r"it, test row 3: value 1\.5"):
        observe(data, "dynamic", "binary")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("observes", OBSERVES)
def test_every_mode_is_reproducible_and_leaves_the_global_generator_alone(
    mode: str, observes: str
) -> None:
    data = images("black and white")
    state = torch.get_rng_state()
    first, second = (observe(data, mode, observes, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.x_test, second.x_test) and torch.equal(first.x_train, second.x_train)
    assert first.protocol == second.protocol


def test_static_draws_train_once_and_apart_from_test() -> None:
    data = own_split("it", images().train.numpy(), images().train.numpy())
    static = observe(data, "static", "binary")
    assert static.observe is None and set(static.x_train.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(static.x_train, static.x_test)  # same images, different streams
    assert not torch.equal(observe(data, "static", "binary", seed=1).x_train, static.x_train)
    assert (
        static.protocol["observation"] == "static binarization; train and test drawn once, seed 0"
    )
    assert torch.equal(
        static.x_test, observe(data, "dynamic", "binary").x_test
    )  # the same test set


def test_dynamic_draws_train_afresh() -> None:
    dynamic = observe(images(), "dynamic", "binary")
    assert dynamic.observe is not None
    with torch.random.fork_rng():
        assert not torch.equal(dynamic.observe(dynamic.x_train), dynamic.observe(dynamic.x_train))


@pytest.mark.parametrize(
    ("mode", "observes"),
    [("dynamic", "binary"), ("auto", "real"), ("static", "binary"), ("none", "real")],
)
def test_validation_rows_are_observed_once(mode: str, observes: str) -> None:
    data = images()
    result = observe(data, mode, observes)
    _, rows = data.validation_split(0.25, seed=0)

    def valid() -> Tensor:
        return result.validation(result.x_train[rows])

    assert valid().dtype == torch.float32 and torch.equal(valid(), valid())
    if result.observe is None:
        assert torch.equal(valid(), result.x_train[rows])


def test_binarization_applies_under_any_likelihood() -> None:
    for observes in OBSERVES:
        assert set(observe(images(), "threshold", observes).x_test.unique().tolist()) == {0.0, 1.0}


def test_a_density_of_undequantized_levels_is_said() -> None:
    result = observe(images(), "none", "real")
    assert "not dequantized" in result.protocol["observation"] and result.bits_offset is None
    assert observe(images(), "auto", "real").bits_offset == 8.0


def test_protocols_are_one_line_of_words() -> None:
    for each in (Dynamic(256), Dequantize(256), Threshold(None), Grey(None), Levels(17)):
        assert each.protocol and "\n" not in each.protocol
        assert each.fresh == isinstance(each, Dynamic | Dequantize)
