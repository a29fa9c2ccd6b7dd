"""Reduced precision is opt-in, and its error is measured on the very images; memory that runs out
halves the tile.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae import ambient, guides, models
from pyro_vae.ambient import SETTINGS
from pyro_vae.compile import trace
from pyro_vae.evaluation import traced
from pyro_vae.evaluation.precision import error_in_words, find_precision
from pyro_vae.evaluation.traced import TracedWeights
from pyro_vae.memory import is_out_of_memory


def pair() -> tuple[models.GenerativeModel, guides.MeanField]:
    torch.manual_seed(0)
    net = {"hidden": (16,)}
    model = models.GenerativeModel(models.StandardNormal(3), models.Bernoulli(3, (1, 6, 6), **net))
    return model, guides.MeanField((1, 6, 6), 3, **net)


def images(size: int = 12) -> Tensor:
    return (torch.rand(size, 1, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.3).float()


def test_bfloat16_rounds_products_and_nothing_else() -> None:
    """Their factors and results; the same functions eagerly and in a trace."""
    dense, conv = torch.nn.Linear(7, 5), torch.nn.Conv2d(3, 4, 3, padding=1)
    x, image = torch.randn(3, 7), torch.randn(2, 3, 8, 8)

    def run(x: Tensor, image: Tensor) -> list[Tensor]:
        products = dense(x), conv(image), torch.einsum("bi,oi->bo", x, dense.weight)
        return [each.exp().sum(-1) for each in products]

    wx, (weight, bias) = x.bfloat16(), (each.bfloat16() for each in dense.parameters())
    filters = (each.bfloat16() for each in conv.parameters())
    rounded = (
        torch.nn.functional.linear(wx, weight, bias),
        torch.nn.functional.conv2d(image.bfloat16(), *filters, padding=1),
        wx @ weight.t(),
    )
    with ambient.products_rounded("cpu"):
        eager, program = run(x, image), trace.trace(run, [x, image])
    for own, traced_one, expected in zip(eager, program(x, image), rounded, strict=True):
        assert torch.equal(own, traced_one)
        assert torch.equal(own, expected.float().exp().sum(-1))


def test_the_error_is_measured_told_and_small() -> None:
    model, guide = pair()
    exact = pv.log_marginal(model, guide, images(), num_samples=400, seed=3)
    rough = pv.log_marginal(model, guide, images(), num_samples=400, seed=3, precision="bfloat16")
    difference = rough.log_px - exact.log_px  # the same seed is the same noise
    assert 0 < float(difference.abs().max()) < 0.05
    said = rough.protocol["precision"]
    assert (
        "bfloat16 products" in said
        and "12 of these images at K = 400" in said
        and said in str(rough)
    )
    assert exact.protocol["precision"] == "float32"


def test_eager_programs_are_rounded_as_traced_ones() -> None:
    options = {"num_samples": 50, "precision": "bfloat16", "seed": 3}
    eager, traced_one = (
        pv.log_marginal(*pair(), images(), compile=tier, **options) for tier in ("off", "graph")
    )
    torch.testing.assert_close(eager.log_px, traced_one.log_px, rtol=0, atol=1e-4)
    assert eager.protocol["precision"].startswith("bfloat16 products")


@pytest.mark.parametrize("factor", [0.8, 0.97, 1.03, 1.25])
def test_a_reduced_program_that_is_wrong_is_not_used(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the arithmetic of bfloat16, but another function: each log weight off by so much."""
    own = traced.trace

    def wrong(*arguments: Any) -> trace.TensorProgram:
        program = own(*arguments)
        if torch.is_autocast_enabled("cpu"):
            graph = program.graph.graph
            (end,) = (node for node in graph.nodes if node.op == "output")
            (result,) = end.args[0]
            with graph.inserting_before(end):
                end.args = ([graph.call_function(torch.ops.aten.mul.Tensor, (result, factor))],)
            program.graph.recompile()
        return program

    monkeypatch.setattr(traced, "trace", wrong)
    options: dict[str, Any] = {"num_samples": 50, "precision": "bfloat16"}
    found = pv.log_marginal(*pair(), images(), **options)
    eager = pv.log_marginal(*pair(), images(), compile="off", **options)
    assert torch.equal(found.log_px, eager.log_px)


def test_the_measured_error_is_mean_and_worst() -> None:
    errors = torch.tensor([0.034, -0.0382])
    found = error_in_words(errors, 1000)
    assert found == "error on 2 of these images at K = 1000: mean -0.002, worst 0.04 nats"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "half"}, "float32"),
        ({"precision": "tf32"}, "CUDA"),
    ],
)
def test_what_can_not_be_had_is_refused(options: dict, words: str) -> None:
    with pytest.raises(pv.UserError, match=words):
        pv.log_marginal(*pair(), images(), num_samples=10, device="cpu", **options)


def test_float64_parameters_are_not_rounded() -> None:
    model, guide = pair()
    with pytest.raises(pv.UserError, match="float64"):
        pv.log_marginal(
            model.double(), guide.double(), images(), num_samples=10, precision="bfloat16"
        )


def test_products_are_as_named_on_every_device_and_as_before_afterwards() -> None:
    before = [each.fp32_precision for each in SETTINGS]
    for name, products in (("float32", "ieee"), ("tf32", "tf32"), ("bfloat16", "ieee")):
        with ambient.exact(find_precision(name).products):
            assert {each.fp32_precision for each in SETTINGS} == {products}
    assert [each.fp32_precision for each in SETTINGS] == before


# ------------------------------------------------------------------------------------------


def memory_for(rows: int, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Draws of more rows than that fail as an allocator does."""
    own = TracedWeights.__call__

    def tile(self: TracedWeights, x: Tensor, fields: dict[str, Tensor]) -> Callable[[int], Tensor]:
        draw = own(self, x, fields)

        def draw_within(k: int) -> Tensor:
            if k * len(x) > rows:
                raise error
            return draw(k)

        return draw_within

    monkeypatch.setattr(TracedWeights, "__call__", tile)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        pytest.param(
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried "
                "to allocate 8 bytes."
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(MemoryError(), marks=pytest.mark.slow),
    ],
)
def test_an_evaluation_out_of_memory_halves_its_tile_goes_on_and_says_so(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = pv.log_marginal(*pair(), images(50), num_samples=300)
    memory_for(300, monkeypatch, error)
    halved = pv.log_marginal(*pair(), images(50), num_samples=300)
    assert "out of memory with 2000 rows" in str(halved) and "continued with 250" in str(halved)
    assert not any("memory" in note for note in plain.notes)
    assert abs(halved.mean - plain.mean) < 5 * (halved.se_mc**2 + plain.se_mc**2) ** 0.5
    assert halved.log_px.shape == (50,) and halved.protocol["sha256"] == plain.protocol["sha256"]


def test_noise_of_a_halved_tile_s_parts_is_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """One image many times, each with an estimate of its own; in whole tiles it has the numbers
    that it always had.
    """
    memory_for(
        300, monkeypatch, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    )
    model, guide = pair()
    halved = pv.log_marginal(
        model.double(), guide.double(), images(1).double().expand(50, 1, 6, 6), num_samples=300
    )
    assert "continued with 250" in str(halved) and len(halved.log_px.unique()) == 50


def test_a_model_that_does_not_fit_at_one_image_and_one_draw_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory_for(
        0, monkeypatch, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    )
    with pytest.raises(pv.UserError, match="one image and one draw"):
        pv.log_marginal(*pair(), images(2), num_samples=2)


def test_the_real_allocator_s_error_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value) and not is_out_of_memory(RuntimeError("shape mismatch"))


def test_a_tile_s_noise_depends_on_its_place_alone() -> None:
    """So an evaluation that is shared out among processes gives the same numbers."""
    model, guide = pair()
    whole = pv.log_marginal(model, guide, images(40), num_samples=1000, seed=2)  # 20 images a tile
    first = pv.log_marginal(model, guide, images(40)[:20], num_samples=1000, seed=2)
    assert torch.equal(whole.log_px[:20], first.log_px)
