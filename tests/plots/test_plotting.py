"""The pictures show what they say: pixels are those of the images, points those of the means."""

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from pyro import distributions as dist
from torch import Tensor

from pyro_vae import guides, models
from pyro_vae.analysis.latents import whole_images
from pyro_vae.data.image_data import ImageData, own_split
from pyro_vae.data.transforms import Observed, observe
from pyro_vae.errors import UserError
from pyro_vae.plots.context import Subject
from pyro_vae.plots.figures import side_by_side
from pyro_vae.plots.images import (
    DoesNotFit,
    picture_shape,
    tile,
    to_pixels,
    value_range,
)
from pyro_vae.plots.latent_pages import arc, gaussian_grid, line, prior_laws
from pyro_vae.plots.pages import PAGES, samples_picture, write_beside, write_pictures
from pyro_vae.plots.restoration_pages import missing_half, noise_for

HALF_LEVEL = 0.501 / 255
ROWS: list[dict[str, Any]] = [
    {
        "epoch": e,
        "train": {"elbo": -9.0 / e, "reconstruction": -8.0 / e, "kl": 1.0 / e},
        "valid": None,
    }
    for e in range(1, 5)
]
ROWS[3]["valid"] = {"elbo": -3.0, "reconstruction": -2.5, "kl": 0.5}


def wipe(x: Tensor) -> None:
    """A decoder that tells its z: the left half of a 4 × 6 image is Φ(z₁), the right half Φ(z₂)."""
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        halves = (
            torch.special.ndtr(z)[..., None, :].repeat_interleave(3, -1).expand(*z.shape[:-1], 4, 6)
        )
        pyro.sample("seen", dist.Normal(halves.reshape(len(x), 1, 4, 6), 0.1).to_event(3), obs=x)


def read_wipe(x: Tensor) -> None:
    """Its guide, which reads z off the two halves."""
    halves = torch.stack((x[..., :3].mean((1, 2, 3)), x[..., 3:].mean((1, 2, 3))), -1)
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(torch.special.ndtri(halves), 0.1).to_event(1))


def wiped_images(number: int) -> Tensor:
    z = torch.randn(number, 2, generator=torch.Generator().manual_seed(1))
    return (
        torch.special.ndtr(z)[:, None, None, :]
        .repeat_interleave(3, -1)
        .expand(-1, 1, 4, 6)
        .contiguous()
    )


def observed_of(images: Tensor, labels: Tensor | None = None) -> tuple[Observed, ImageData]:
    data = own_split("wipes", images.numpy(), images.numpy(), labels, labels)
    return observe(data, "none", observes="real"), data


def drawn_canvas(figure: Figure) -> np.ndarray[Any, Any]:
    """A grid of grey images, as rounded to 8 bits."""
    levels = np.asarray(figure.axes[0].images[0].get_array())
    assert levels.dtype == np.uint8 and (levels == levels[..., :1]).all()
    return levels[..., 0] / 255


# ---- images as arrays


@pytest.mark.parametrize(("channels", "gap", "row_gap"), [(1, 1, None), (3, 2, 5), (1, 0, None)])
def test_tile_puts_image_i_in_its_row_and_column(
    channels: int, gap: int, row_gap: int | None
) -> None:
    images = np.random.default_rng(0).uniform(size=(7, 4, 5, channels)).astype(np.float32)
    canvas = tile(images, 3, gap=gap, row_gap=row_gap, background=-1)
    down = gap if row_gap is None else row_gap
    assert canvas.shape == (3 * 4 + 2 * down, 3 * 5 + 2 * gap, channels)
    for i, image in enumerate(images):
        top, left = i // 3 * (4 + down), i % 3 * (5 + gap)
        assert np.array_equal(canvas[top : top + 4, left : left + 5], image)
        canvas[top : top + 4, left : left + 5] = -1
    assert (canvas == -1).all()


def test_pixels_are_scaled_and_clipped() -> None:
    x = torch.tensor([[-2.0, 0.0, 2.0, 8.0]])
    assert to_pixels(x, (-2, 2))[0, ..., 0].tolist() == [[0.0, 0.5], [1.0, 1.0]]
    assert value_range(torch.tensor([0.2, 0.7])) == (0.0, 1.0)
    assert value_range(x) == (-2.0, 8.0)
    colours = torch.rand(2, 3, 4, 5)
    assert np.array_equal(to_pixels(colours)[1, 2, 3], colours[1, :, 2, 3].numpy())


def test_shapes_that_are_images() -> None:
    assert picture_shape((784,)) == (1, 28, 28)
    assert picture_shape((3, 4, 5)) == (3, 4, 5)
    for shape in [(12,), (2, 4, 5), (3, 4, 5, 6)]:
        with pytest.raises(DoesNotFit, match="no images"):
            picture_shape(shape)
    site = whole_images({"y": torch.zeros(2), "flat": torch.arange(40.0).reshape(2, 20)}, (1, 4, 5))
    assert torch.equal(site[1, 0, 0], torch.arange(20.0, 25.0))
    with pytest.raises(UserError, match="y, flat"):
        whole_images({"y": torch.zeros(2), "flat": torch.zeros(2, 20)}, (1, 4, 6))


def test_the_gaussian_grid_is_even_in_probability_and_rises_to_the_right_and_upwards() -> None:
    z = gaussian_grid(20).reshape(20, 20, 2)
    assert z[-1, 0].tolist() == pytest.approx(
        [-1.959964, -1.959964], abs=1e-5
    )  # Φ⁻¹(0.025), at the lower left
    assert z[0, -1].tolist() == pytest.approx([1.959964, 1.959964], abs=1e-5)
    shares = torch.special.ndtr(z)
    torch.testing.assert_close(
        shares[3, 1:, 0] - shares[3, :-1, 0], torch.full((19,), 0.05), atol=1e-6, rtol=0
    )


# ---- pages


def test_the_manifold_shows_each_quantile_in_its_place() -> None:
    canvas = drawn_canvas(PAGES["manifold"](Subject(wipe, read_wipe, wiped_images(20))))
    assert canvas.shape == (20 * 5 - 1, 20 * 7 - 1)
    for row in range(20):
        for column in range(20):
            image = canvas[5 * row : 5 * row + 4, 7 * column : 7 * column + 6]
            assert image[:, :3] == pytest.approx((column + 0.5) / 20, abs=HALF_LEVEL)
            assert image[:, 3:] == pytest.approx((19.5 - row) / 20, abs=HALF_LEVEL)


def test_reconstructions_stand_below_their_images() -> None:
    x = wiped_images(12)
    canvas = drawn_canvas(PAGES["reconstructions"](Subject(wipe, read_wipe, x)))
    pair, row_gap = 4 + 1 + 4, 3
    assert canvas.shape == (2 * pair + row_gap, 10 * 7 - 1)
    for i, image in enumerate(x[:, 0].numpy()):
        top, left = i // 10 * (pair + row_gap), i % 10 * 7
        block = canvas[top : top + pair, left : left + 6]
        assert block[:4] == pytest.approx(image, abs=HALF_LEVEL)
        assert block[5:] == pytest.approx(image, abs=HALF_LEVEL)


def test_the_file_has_the_canvas_pixel_by_pixel(tmp_path: Path) -> None:
    """Every pixel of an image is a square of whole device pixels, of its own grey."""
    observed, data = observed_of(wiped_images(40))
    (path,) = write_pictures(tmp_path, wipe, read_wipe, observed, data, [], pages=["samples"])
    figure = PAGES["samples"](Subject(wipe, read_wipe, observed.x_test))
    canvas, file = drawn_canvas(figure), imread(path)
    box, (height, width) = figure.axes[0].get_window_extent(), canvas.shape
    scale = round(box.width / width)
    assert (box.width, box.height) == pytest.approx((scale * width, scale * height))
    left, top = round(box.x0), file.shape[0] - round(box.y1)
    shown = file[top : top + scale * height, left : left + scale * width, 0]
    expected = canvas.repeat(scale, 0).repeat(scale, 1)
    assert shown == pytest.approx(expected, abs=1e-6)
    assert len(np.unique(canvas)) > 80  # 100 samples, two greys in each


def test_a_scatter_has_the_means_at_equal_aspect_and_the_classes() -> None:
    x = wiped_images(30)
    labels = torch.arange(30) % 3 + 4
    figure = PAGES["latent"](Subject(wipe, read_wipe, x, labels, "wipes"))
    axes, z = figure.axes[0], torch.special.ndtri(x[:, 0, 0, [0, -1]])
    points = np.asarray(axes.collections[0].get_offsets())
    colours = np.asarray(axes.collections[0].get_facecolor())
    order = [int(np.abs(points - mean).sum(1).argmin()) for mean in z.numpy()]
    assert points[order] == pytest.approx(z.numpy(), abs=1e-4)
    for label in (4, 5, 6):  # one colour each
        assert len(np.unique(colours[order][labels.numpy() == label], axis=0)) == 1
    assert len(np.unique(colours, axis=0)) == 3
    assert axes.get_aspect() == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["4", "5", "6"]
    assert "30 test images of wipes" in axes.get_title()


@pytest.mark.parametrize(("number", "how"), [(40, "PCA"), (160, "t-SNE (perplexity 30)")])
def test_more_dimensions_are_projected_and_it_is_said(number: int, how: str) -> None:
    torch.manual_seed(0)
    model = models.GenerativeModel(
        models.StandardNormal(5), models.Bernoulli(5, (16,), hidden=(8,))
    )
    guide = guides.MeanField((16,), 5, hidden=(8,))
    subject = Subject(model, guide, torch.rand(number, 16).round())
    axes = PAGES["latent"](subject).axes[0]
    assert (
        f"{how} of the 5-D means" in axes.get_title() and f"{number} test rows" in axes.get_title()
    )
    points = np.asarray(axes.collections[0].get_offsets())
    assert points.shape == (number, 2)
    if how == "PCA":  # by its definition: the two largest variances
        variances = np.linalg.eigvalsh(np.cov(subject.means.numpy().T))[::-1]
        assert points.var(0, ddof=1) == pytest.approx(variances[:2], rel=1e-4)


def test_curves_are_the_history() -> None:
    figure = PAGES["curves"](Subject(wipe, read_wipe, wiped_images(3), history=ROWS))
    for axes, key in zip(figure.axes, ("elbo", "reconstruction", "kl"), strict=True):
        train, valid = axes.get_lines()
        assert np.asarray(train.get_xydata()).tolist() == [
            [row["epoch"], row["train"][key]] for row in ROWS
        ]
        assert np.asarray(valid.get_xydata()).tolist() == [[4, ROWS[3]["valid"][key]]]
    assert figure.axes[0].get_ylabel() == "nats"


# ---- ways through the latent space


def cells(
    figure: Figure, height: int, width: int, row_gaps: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """The images of a grid, ``(rows, columns, height, width)``; ``row_gaps``: pixels between rows,
    in turn.
    """
    canvas, rows, top, i = drawn_canvas(figure), [], 0, 0
    while top < len(canvas):
        rows.append(
            [
                canvas[top : top + height, left : left + width]
                for left in range(0, canvas.shape[1], width + 1)
            ]
        )
        top, i = top + height + row_gaps[i % len(row_gaps)], i + 1
    return np.array(rows)


def test_lines_and_arcs() -> None:
    start, end, at = (
        torch.tensor([3.0, 0.0, 0.0]),
        torch.tensor([0.0, 3.0, 0.0]),
        torch.linspace(0, 1, 7),
    )
    for way in (line, arc):
        torch.testing.assert_close(
            way(start, end, at)[[0, -1]], torch.stack((start, end)), atol=1e-6, rtol=0
        )
    torch.testing.assert_close(line(start, end, at)[3], torch.tensor([1.5, 1.5, 0.0]))
    round_about = arc(start, end, at)
    torch.testing.assert_close(round_about.norm(dim=1), torch.full((7,), 3.0))
    steps = (round_about[1:] * round_about[:-1]).sum(1) / 9  # equal angles
    torch.testing.assert_close(steps, torch.full((6,), float(np.cos(np.pi / 12))))
    for other in (2 * start, -start, torch.zeros(3)):  # no plane to go round in
        torch.testing.assert_close(arc(start, other, at), line(start, other, at))


def test_an_interpolation_goes_from_image_to_image() -> None:
    x = wiped_images(7)
    found = cells(PAGES["interpolation"](Subject(wipe, read_wipe, x)), 4, 6, (1, 3))
    assert found.shape == (6, 13, 4, 6)  # three pairs, each on a line and on an arc
    z = torch.special.ndtri(x[:, 0, 0, [0, -1]])
    for pair in range(3):
        for row in (2 * pair, 2 * pair + 1):
            assert found[row, 0] == pytest.approx(x[2 * pair, 0].numpy(), abs=HALF_LEVEL)
            assert found[row, 1] == pytest.approx(x[2 * pair, 0].numpy(), abs=HALF_LEVEL)
            assert found[row, -2] == pytest.approx(x[2 * pair + 1, 0].numpy(), abs=HALF_LEVEL)
            assert found[row, -1] == pytest.approx(x[2 * pair + 1, 0].numpy(), abs=HALF_LEVEL)
        middle = torch.special.ndtr(z[2 * pair : 2 * pair + 2].mean(0))
        assert found[2 * pair, 6, 0, [0, -1]] == pytest.approx(middle.numpy(), abs=HALF_LEVEL)


def test_a_traversal_moves_one_dimension_through_the_quantiles_of_its_prior() -> None:
    x = wiped_images(40)
    subject = Subject(wipe, read_wipe, x)
    figure = PAGES["traversals"](subject)
    found = cells(figure, 4, 6, (1,))
    assert found.shape == (2, 11, 4, 6)
    variances = subject.means.var(0)
    order = variances.argsort(descending=True).tolist()  # the most active first
    even, first = (np.arange(11) + 0.5) / 11, x[0, 0, 0, [0, -1]].numpy()
    for row, d in enumerate(order):
        moved, still = found[row, :, 0, [0, -1][d]], found[row, :, 0, [0, -1][1 - d]]
        assert moved == pytest.approx(even, abs=HALF_LEVEL) and still == pytest.approx(
            first[1 - d], abs=HALF_LEVEL
        )
    labels = [text.get_text() for text in figure.texts if text.get_text().startswith("$z")]
    assert labels == [f"$z_{{{d + 1}}}$: {float(variances[d]):.2f}" for d in order]
    assert "2 of 2 above" in figure.texts[-1].get_text()


def test_the_prior_of_a_site_is_its_marginal() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.full((4,), 3.0), 2.0).to_event(1))
            b = pyro.sample("b", dist.Normal(a - 3.0, 1.0).to_event(1))
            c = pyro.sample("c", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(a + b + c.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(x, 1.0).to_event(1))
            pyro.sample("b", dist.Normal(x, 1.0).to_event(1))
            pyro.sample("c", dist.Categorical(torch.ones(3)))

    subject = Subject(model, guide, torch.randn(30, 4))
    laws = prior_laws(subject)
    assert (laws["a"].mean == 3).all() and (laws["a"].sd == 2).all()  # exactly
    draws = 2010
    assert (laws["b"].mean.abs() < 5 * 2 / draws**0.5).all()
    assert ((laws["b"].sd / 5**0.5 - 1).abs() < 5 / (2 * draws) ** 0.5).all()
    assert [law.discrete for law in laws.values()] == [False, False, True] and laws["a"].real
    for page in ("interpolation", "traversals"):
        with pytest.raises(DoesNotFit, match="site 'c' is discrete"):
            PAGES[page](subject)


# ---- classes


def shaded(x: Tensor | None = None, size: int | None = None, y: Tensor | None = None) -> None:
    """Class y has grey y/4, plus a little of z."""
    assert y is not None
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        grey = y / 4 + 0.1 * torch.special.ndtr(z[..., 0])
        pyro.sample("x", dist.Normal(grey[:, None].expand(-1, 16), 0.1).to_event(1), obs=x)


def read_shade(x: Tensor, y: Tensor) -> None:
    """Its guide."""
    with pyro.plate("rows", len(y)):
        pyro.sample(
            "z", dist.Normal(10 * (x.mean(1, keepdim=True) - y[:, None] / 4), 1.0).to_event(1)
        )


def test_classes_are_rows_and_draws_are_columns() -> None:
    labels = torch.tensor([3, 0, 1, 1, 3, 0])
    subject = Subject(shaded, read_shade, labels[:, None] / 4 + torch.zeros(6, 16), labels)
    figure = PAGES["classes"](subject)
    found = cells(figure, 4, 4, (1,))
    assert found.shape == (3, 10, 4, 4)
    extra = found[0, :, 0, 0]
    assert len(np.unique(extra)) > 5 and (extra <= 0.1 + HALF_LEVEL).all()
    for row, label in enumerate((0, 1, 3)):
        assert found[row, :, 2, 3] == pytest.approx(label / 4 + extra, abs=2 * HALF_LEVEL)
    assert [text.get_text() for text in figure.texts[:3]] == ["0", "1", "3"]
    for page in (
        "reconstructions",
        "samples",
        "traversals",
        "imputation",
    ):  # given y, they are drawn
        PAGES[page](subject)


def test_a_page_of_classes_says_why_it_is_not_there() -> None:
    x = wiped_images(30)
    for labels, words in ((None, "no labels"), (torch.arange(30), "not conditional")):
        with pytest.raises(DoesNotFit, match=words):
            PAGES["classes"](Subject(wipe, read_wipe, x, labels))
    grey = torch.zeros(30, 16)
    with pytest.raises(DoesNotFit, match="30 classes"):
        PAGES["classes"](Subject(shaded, read_shade, grey, torch.arange(30)))


# ---- restored images


def test_imputation_shows_what_is_seen_and_keeps_it() -> None:
    x = wiped_images(11)
    figure = PAGES["imputation"](Subject(wipe, read_wipe, x, seed=3))
    found = cells(figure, 4, 6, (1,))
    assert found.shape == (6, 10, 4, 6)  # the image, what is seen, the mean, three draws
    missing = missing_half(10, (1, 4, 6), 3)[:, 0].numpy()
    image = x[:10, 0].numpy()
    assert missing[:5, 2:].all() and not missing[:5, :2].any()
    assert found[0] == pytest.approx(image, abs=HALF_LEVEL)
    assert found[1][missing] == pytest.approx(0.5, abs=HALF_LEVEL)
    for row in range(1, 6):
        assert found[row][~missing] == pytest.approx(image[~missing], abs=HALF_LEVEL)
    title = figure.texts[-1].get_text()
    error = np.sqrt(np.square(found[2] - image)[missing].mean())
    written = float(title.split("missing pixels: ")[1].split(";")[0])
    assert written == pytest.approx(error, abs=0.01)  # to what 8 bits and clipping leave


def test_the_noise_is_that_of_the_data() -> None:
    law, words = noise_for(Subject(wipe, read_wipe, torch.tensor([[0.0, 1.0], [1.0, 1.0]])))
    assert (
        law(torch.tensor([0.0, 1.0])).mean.tolist() == pytest.approx([0.1, 0.9])
        and "10% of the pixels" in words
    )
    law, words = noise_for(Subject(wipe, read_wipe, torch.tensor([[0.0, 16.0]])))
    assert law(torch.tensor([3.0])).stddev.item() == pytest.approx(3.2) and "sd 3.2" in words


def test_denoising_takes_noise_off() -> None:
    figure = PAGES["denoising"](Subject(wipe, read_wipe, wiped_images(30)))
    title = figure.texts[-1].get_text()
    before, after = (
        float(word) for word in title.split("pixel: ")[1].split(" after")[0].split(" before, ")
    )
    assert before == pytest.approx(0.2, rel=0.3) and after < before / 2


def test_an_autoencoder_is_not_sampled_from() -> None:
    def point(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Delta(x[:, 0, 0, [0, -1]], event_dim=1))

    for page in ("imputation", "denoising"):
        with pytest.raises(DoesNotFit, match="point mass"):
            PAGES[page](Subject(wipe, point, wiped_images(5)))
    assert cells(PAGES["traversals"](Subject(wipe, point, wiped_images(5))), 4, 6, (1,)).shape[
        :2
    ] == (2, 11)


# ---- files


@pytest.mark.slow
def test_runs_side_by_side_are_what_each_is_alone(tmp_path: Path) -> None:
    subjects = {
        "one": Subject(wipe, read_wipe, wiped_images(30)),
        "other": Subject(wipe, read_wipe, wiped_images(31)),
    }
    path = write_beside(tmp_path / "new" / "two.png", subjects, ["manifold", "latent"])
    assert imread(path).ndim == 3
    alone = [
        [PAGES[page](subject) for subject in subjects.values()] for page in ("manifold", "latent")
    ]
    whole = side_by_side(alone, list(subjects))
    shown = np.asarray(whole.axes[0].images[0].get_array())
    height, width = (
        round(inches * figure.dpi)
        for inches, figure in zip(alone[0][0].get_size_inches()[::-1], alone[0], strict=True)
    )
    first = np.asarray(alone[0][0].canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    assert any(
        np.array_equal(shown[60 : 60 + height, left : left + width], first)
        for left in range(shown.shape[1] - width)
    )
    assert [text.get_text() for text in whole.texts] == ["one", "other"]
    single = Subject(shaded, read_shade, torch.zeros(30, 16), torch.arange(30) % 2)
    write_beside(
        tmp_path / "mixed.png", {"a": subjects["one"], "b": single}, ["manifold", "classes"]
    )
    mixed = imread(tmp_path / "mixed.png")[..., 0]  # in each place a picture, or why there is none
    height, width = mixed.shape[0] // 2, mixed.shape[1] // 2
    for top, left in ((100, 0), (100, width), (height, 0), (height, width)):
        assert (mixed[top : top + height - 100, left : left + width] < 0.5).any()
    with pytest.raises(UserError, match="no page 'classes': the test images have no labels"):
        write_beside(tmp_path / "none.png", subjects, ["classes"])


def test_the_pages_that_fit_are_written(tmp_path: Path) -> None:
    observed, data = observed_of(wiped_images(30), torch.arange(30) % 4)
    written = write_pictures(tmp_path / "run", wipe, read_wipe, observed, data, ROWS)
    assert [path.stem for path in written] == [name for name in PAGES if name != "classes"]
    assert all(imread(path).ndim == 3 for path in written)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(
        path.name for path in written
    )


def test_pages_that_do_not_fit_are_left_out_or_refused_if_asked_for(tmp_path: Path) -> None:
    model = models.GenerativeModel(models.StandardNormal(3), models.Gaussian(3, (12,), hidden=(8,)))
    guide = guides.MeanField((12,), 3, hidden=(8,))
    observed, data = observed_of(torch.rand(20, 12))
    assert [p.stem for p in write_pictures(tmp_path, model, guide, observed, data, ROWS)] == [
        "curves",
        "latent",
    ]
    with pytest.raises(UserError, match=r"no page 'samples': data of shape \(12,\)"):
        write_pictures(tmp_path, model, guide, observed, data, ROWS, pages=["samples"])
    with pytest.raises(UserError, match="did you mean 'manifold'"):
        write_pictures(tmp_path, model, guide, observed, data, ROWS, pages=["manifolds"])


def test_samples_of_a_model_alone_in_colour(tmp_path: Path) -> None:
    model = models.GenerativeModel(
        models.StandardNormal(2), models.Bernoulli(2, (3, 4, 5), hidden=(8,))
    )
    state = torch.get_rng_state()
    first = imread(samples_picture(model, (3, 4, 5), 6, tmp_path / "new" / "a.png", seed=1))
    assert np.array_equal(
        first, imread(samples_picture(model, (3, 4, 5), 6, tmp_path / "b.png", seed=1))
    )
    assert not np.array_equal(
        first, imread(samples_picture(model, (3, 4, 5), 6, tmp_path / "c.png", seed=2))
    )
    assert np.ptp(first[..., :3], axis=2).max() > 0.05  # colours, not grey
    assert torch.equal(torch.get_rng_state(), state)
