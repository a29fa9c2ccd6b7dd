"""A traced program is the function that was traced: on other batches, in other noise, with other
parameters.
"""

import logging
from collections.abc import Callable

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae import ais, log_marginal
from pyro_vae.compile import trace
from pyro_vae.compile.partition import SplitProgram, split_at_draws
from pyro_vae.evaluation.traced import EagerWeights, TracedWeights
from pyro_vae.pair.nodes import plain_score
from pyro_vae.pair.runtime import Pair
from pyro_vae.training.train_step import StagedStep
from tests.support.exact import ppca
from tests.support.steps import images, needs_compiler, small_pair, step_of


def test_a_program_follows_the_tensors_that_it_captured() -> None:
    weight, offset = nn.Parameter(torch.randn(4, 4)), torch.zeros(())
    program = trace.trace(lambda x: [x @ weight + offset], [torch.randn(3, 4)])
    with torch.no_grad():
        weight.mul_(2.0)
        offset.fill_(0.5)
    x = torch.randn(3, 4)
    assert torch.equal(program(x)[0], x @ weight + offset)


def test_noise_is_drawn_at_each_replay_and_follows_the_seed() -> None:
    program = trace.trace(lambda x: [x + torch.randn_like(x)], [torch.zeros(5)])
    torch.manual_seed(3)
    first, second = program(torch.zeros(5))[0], program(torch.zeros(5))[0]
    torch.manual_seed(3)
    assert torch.equal(first, torch.randn(5)) and not torch.equal(first, second)


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (lambda x: [x[x > 0]], "boolean"),
        (lambda x: [x.nonzero()], "nonzero"),
        (lambda x: [x.masked_select(x > 0)], "masked_select"),
        (lambda x: [x * 2 if x.sum() > 0 else x], "tracing failed"),
    ],
)
def test_what_depends_on_the_batch_is_not_staged(
    function: Callable[[Tensor], list[Tensor]], word: str
) -> None:
    with pytest.raises(trace.NotStageable, match=word):
        trace.trace(function, [torch.randn(6)])


def test_only_what_no_draw_feeds_is_in_the_prologue() -> None:
    weight = torch.randn(4, 4)

    def function(x: Tensor) -> list[Tensor]:
        encoded = (x @ weight).exp()  # once a tile
        return [encoded.expand(7, 2, 4) * torch.randn(7, 2, 4) + encoded.tanh()]

    program = trace.trace(function, [torch.randn(2, 4)])
    prologue, body = split_at_draws(program.graph)
    names = [str(node.target) for node in body.graph.nodes if node.op == "call_function"]
    assert not any("mm" in name or "exp." in name or "tanh" in name for name in names)
    assert any("expand" in name for name in names), (
        "an expanded view belongs to the tile of draws, where it is no memory"
    )
    x = torch.randn(2, 4)
    torch.manual_seed(0)
    expected = function(x)[0]
    torch.manual_seed(0)
    ready = prologue(*program.captured, x)
    assert torch.equal(body(*program.captured, x, *ready)[0], expected)


def filled(x: Tensor) -> Tensor:
    """Noise that a call writes into memory of the program's own."""
    return x.exp() + x.new_zeros(3).normal_() + torch.zeros(3).bernoulli_(0.5)


def filled_in_part(x: Tensor) -> Tensor:
    """The same into a view of it, which is then read as a whole; and into what was read before."""
    noise, before = x.new_zeros(3), torch.zeros(3)
    noise[:2].normal_()
    seen = x.exp() + before
    before.view(3, 1).squeeze(1).uniform_()
    return seen + before + noise


def added(x: Tensor) -> Tensor:
    """A draw added to what no draw has fed: as a whole, to a row, to one of several views, twice."""
    location, table, total = x.exp(), x.expand(2, 3).clone(), x.new_zeros(3)
    location += torch.randn(3)
    table[1] = torch.randn(3)
    first, second = table.unbind()
    second.mul_(torch.rand(3))
    for _ in range(2):
        total.add_(torch.randn(3))
    return location + first + table[1] + total


@pytest.mark.parametrize("function", [filled, filled_in_part, added])
def test_what_a_draw_is_written_into_is_fresh_in_each_tile_of_draws(
    function: Callable[[Tensor], Tensor],
) -> None:
    """Three tiles of draws at the same images, as by the program itself: nothing is left of the
    tile before.
    """
    x = torch.randn(3, generator=torch.Generator().manual_seed(0))
    tile = SplitProgram(trace.trace(lambda x: [function(x)], [x]), [x], "graph").tile(x)
    torch.manual_seed(4)
    found = [tile()[0].clone() for _ in range(3)]
    torch.manual_seed(4)
    assert torch.equal(torch.stack(found), torch.stack([function(x) for _ in range(3)]))
    assert not torch.equal(found[0], found[1])


def test_what_varies_is_written_into_what_is_fresh() -> None:
    """As a latent's value in an annealing target."""

    def target(u: Tensor, x: Tensor) -> list[Tensor]:
        location = x.exp()
        location += u
        return [location]

    u, x = torch.randn(2, 3)
    tile = SplitProgram(trace.trace(target, [u, x]), [u, x], "graph", varies=True).tile(x)
    for value in (1.0, 2.0, 3.0):
        assert torch.equal(tile(torch.full((3,), value))[0], x.exp() + value)


@pytest.mark.parametrize(
    "tier", ["graph", pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler])]
)
def test_a_decoder_that_writes_in_place_has_the_log_px_of_one_that_does_not(tier: str) -> None:
    """Fifteen tiles of draws of each image: importance sampling, and AIS, whose chains visit many
    z.
    """
    case = ppca(6, widen=1.3)
    weight, shift = torch.randn(
        2, 3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )

    def model(x: Tensor, in_place: bool) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            location = (x @ shift.t() @ shift).expand(*z.shape[:-1], 6) * 0.1
            location = location.add_(z @ weight) if in_place else location + z @ weight
            pyro.sample("pixels", dist.Normal(location, 1.0).to_event(1), obs=x)

    def in_place(x: Tensor) -> None:
        model(x, True)

    def plain(x: Tensor) -> None:
        model(x, False)

    options = {"device": "cpu", "compile": tier}
    for estimate in (
        lambda model: log_marginal(model, case.guide, case.x, num_samples=5000, **options),
        lambda model: ais(
            model, case.guide, case.x, num_steps=10, num_chains=4, num_leapfrog=3, **options
        ),
    ):
        torch.testing.assert_close(
            estimate(in_place).log_px, estimate(plain).log_px, rtol=0, atol=1e-8
        )


@pytest.mark.parametrize("net", ["MLP", "Conv"])
def test_a_replayed_step_is_the_eager_step_to_the_last_bit(net: str) -> None:
    eager, x, fields = step_of(net)
    staged = StagedStep(eager, "graph")
    with eager.loss.pair.active(training=True):
        staged.prepare((x, fields))
        for seed, batch in enumerate(
            (images(16, 5), images(16, 6), images(9, 7))
        ):  # the last one is ragged
            named = {"index": torch.arange(len(batch))}
            buffers = [b.clone() for m in eager.loss.pair.modules for b in m.buffers(recurse=False)]
            results = []
            for step in (eager, staged):
                originals = [b for m in eager.loss.pair.modules for b in m.buffers(recurse=False)]
                for original, kept in zip(originals, buffers, strict=True):
                    original.copy_(kept)
                torch.manual_seed(seed)
                sums, found = step.gradients(batch, named)
                gradients = [gradient.clone() for gradient in found or () if gradient is not None]
                results.append([sums, *gradients, *(b.clone() for b in originals)])
            assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_compiler
@pytest.mark.slow
def test_compiled_log_weights_are_the_eager_ones_in_the_same_noise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pair = Pair.of(*small_pair())
    x, fields = images(6), {"index": torch.arange(6)}

    def kernel(x: Tensor, named: dict[str, Tensor], k: int, score: object) -> Tensor:
        return pair.run(x, named, k, score=score).log_weights()  # type: ignore[arg-type]

    with caplog.at_level(logging.WARNING), torch.no_grad(), pair.active(training=False):
        expected = _draw(EagerWeights(kernel)(x, fields), 40)  # type: ignore[arg-type]
        for tier in ("graph", "inductor"):
            staged = TracedWeights(kernel, tier, (x.flip(0), fields))  # type: ignore[arg-type]
            staged.prepare(x, fields, 40)
            found = _draw(staged(x, fields), 40)
            assert float((found - expected).abs().max()) < 1e-4  # float32, sums of 64 pixels
    assert plain_score is not None and not caplog.records, "compiling is silent"


def _draw(draw: Callable[[int], Tensor], k: int) -> Tensor:
    torch.manual_seed(11)
    return draw(k)


def test_a_program_that_is_not_its_own_eager_self_is_refused() -> None:
    """State outside the tensors (here a Python counter) makes the trace stale: found on the second
    batch.
    """
    eager, x, fields = step_of("MLP")
    calls = iter(range(1000))
    original = eager.loss.step

    def drifting(images: Tensor, named: dict[str, Tensor]) -> object:
        estimate = original(images, named)
        return type(estimate)(
            estimate.loss * (1.0 + next(calls)), *(estimate.reconstruction, estimate.kl, 1.0)
        )

    eager.loss.step = drifting  # type: ignore[method-assign, assignment]
    with (
        eager.loss.pair.active(training=True),
        pytest.raises(trace.NotStageable, match="differs from the eager one"),
    ):
        StagedStep(eager, "graph").prepare((x, fields))


def test_no_program_outlives_its_evaluation() -> None:
    """Weights changed in place or replaced, a layer swapped, other strides: each evaluation is of
    the pair as it is.
    """
    model, guide = small_pair()
    x = images(6)

    def compare(what: str, seen: Tensor = x) -> Tensor:
        found, expected = (
            log_marginal(model, guide, seen, num_samples=40, compile=c).log_px
            for c in ("graph", "off")
        )
        assert torch.allclose(found, expected, atol=1e-4), what
        return found

    first = compare("at first")
    with torch.no_grad():
        model.likelihood.net.layers[0].bias.add_(0.5)
    second = compare("a bias changed in place")
    model.likelihood.net.layers[0].bias = nn.Parameter(
        model.likelihood.net.layers[0].bias.detach() - 1.0
    )
    third = compare("a bias replaced")
    model.likelihood.net.layers[1] = nn.Tanh()
    fourth = compare("a layer swapped")
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(compare("the same images in other strides", turned), fourth)
    values = [float(each.mean()) for each in (first, second, third, fourth)]
    assert len(set(values)) == 4
