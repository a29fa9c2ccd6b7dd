"""The page shows the estimate's own figures, and the worst images in their order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from pyro_vae.analysis.encode import reconstruct
from pyro_vae.errors import UserError
from pyro_vae.evaluation.importance import log_marginal
from pyro_vae.evaluation.page import WORST, evaluation_figure, write_evaluation_page
from pyro_vae.evaluation.result import LogMarginal
from tests.support.exact import ppca
from tests.support.grids import thinned
from tests.support.pairs import binary_images, fresh

OPTIONS: dict[str, Any] = {"compile": "off", "device": "cpu"}


def estimate(num_samples: int = 500) -> LogMarginal:
    case = ppca(widen=1.4)
    return log_marginal(case.model, case.guide, case.x, num_samples, **OPTIONS)


def panels(figure: Figure) -> list[Any]:
    return [axes for axes in figure.axes if axes.get_xlabel()]


def test_the_panels_show_the_estimates_figures() -> None:
    ll = estimate()
    curve, khat, ess = panels(evaluation_figure(ll))
    line = curve.get_lines()[0]
    assert dict(zip(line.get_xdata().tolist(), line.get_ydata().tolist(), strict=True)) == ll.curve
    shown = np.concatenate([points.get_offsets() for points in khat.collections])
    np.testing.assert_allclose(np.sort(shown[:, 1]), np.sort(ll.khat.numpy()))
    assert sum(bar.get_height() for bar in ess.patches) == ll.num_images
    assert np.ptp(curve.get_ylim()) > 0.149  # a thousandth of a nat must not look like a rise


def test_a_rise_is_not_cut_off() -> None:
    ll = replace(estimate(), curve={50: -20.0, 250: -12.0, 500: -10.0})
    low, high = panels(evaluation_figure(ll))[0].get_ylim()
    assert low < -20 and high > -10


def test_the_worst_images_stand_above_their_reconstructions() -> None:
    ll = estimate()
    x = torch.rand(40, 1, 3, 3)
    figure = evaluation_figure(ll, x, 1 - x)
    pictures = [axes for axes in figure.axes if axes.images]
    order = torch.argsort(ll.log_px)[:WORST]
    assert len(pictures) == 2 * WORST
    for axes, image in zip(pictures[:WORST], order.tolist(), strict=True):
        np.testing.assert_array_equal(
            axes.images[0].get_array()[..., 0], np.rint(x[image, 0].numpy() * 255)
        )
        assert axes.get_title().startswith(f"#{image}\n")
    for axes, image in zip(pictures[WORST:], order.tolist(), strict=True):
        np.testing.assert_allclose(
            axes.images[0].get_array()[..., 0], (1 - x[image, 0].numpy()) * 255, atol=1
        )


@pytest.mark.parametrize(
    ("num_samples", "shape"), thinned([1, 20, 500], [None, (5,), (3, 3), (3, 2, 2)])
)
def test_the_page_is_written_whatever_the_data(
    num_samples: int, shape: tuple[int, ...] | None, tmp_path: Path
) -> None:
    """Data that are no images have no pictures; k̂ and errors may be unknown."""
    x = None if shape is None else torch.rand(40, *shape)
    path = write_evaluation_page(tmp_path / "new" / "page.png", estimate(num_samples), x)
    assert path.read_bytes().startswith(b"\x89PNG") and len(list(path.parent.iterdir())) == 1


def test_the_page_of_few_images_and_of_constant_weights(tmp_path: Path) -> None:
    case = ppca()
    ll = log_marginal(case.model, case.guide, case.x[:3], 500, **OPTIONS)
    assert bool(ll.khat.isneginf().all())
    write_evaluation_page(tmp_path / "a.png", ll, torch.rand(3, 2, 2))
    broken = replace(ll, log_px=torch.tensor([-torch.inf, -3.0, -2.0]))
    write_evaluation_page(tmp_path / "b.png", broken, torch.rand(3, 2, 2))


def test_a_pairs_own_reconstructions_fit(tmp_path: Path) -> None:
    model, guide = fresh("PyroModules")
    x = binary_images(20)
    ll = log_marginal(model, guide, x, 50, **OPTIONS)
    pictures = reconstruct(model, guide, x, device="cpu")["x"]
    write_evaluation_page(tmp_path / "a.png", ll, x.reshape(-1, 3, 4), pictures)


def test_what_is_not_of_these_images_is_refused(tmp_path: Path) -> None:
    ll = estimate()
    with pytest.raises(UserError, match="39 images"):
        evaluation_figure(ll, torch.rand(39, 3, 3))
    with pytest.raises(UserError, match="reconstructions are 7"):
        evaluation_figure(ll, torch.rand(40, 3, 3), torch.rand(7, 3, 3))
    with pytest.raises(UserError, match=r"\.png"):
        write_evaluation_page(tmp_path / "page.pdf", ll)
