"""Pages of images, reconstructions and samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from pyro_vae.analysis.encode import reconstruct
from pyro_vae.analysis.generate import sample
from pyro_vae.analysis.latents import whole_images
from pyro_vae.pair.runtime import Pair
from pyro_vae.plots.context import Subject
from pyro_vae.plots.figures import grid_figure, rows_figure, samples_figure
from pyro_vae.plots.images import DoesNotFit, picture_shape, tile, to_pixels

PAIRS, PAIR_COLUMNS = 40, 10
SAMPLES = 100
MOST_CLASSES, CLASS_COLUMNS = 20, 10


def reconstructions(subject: Subject) -> Figure:
    """Test images as the model observes them, each above the mean of p(x | z) at the mean of q(z |
    x).
    """
    shape, x = subject.event_shape, subject.x[:PAIRS]
    picture_shape(shape)
    found = reconstruct(
        subject.model, subject.guide, x, **subject.options, **subject.fields(slice(PAIRS))
    )
    decoded = whole_images(found, shape)
    pairs = np.stack([to_pixels(x, subject.values), to_pixels(decoded, subject.values)], axis=1)
    height = pairs.shape[2]
    gap = max(1, height // 14)
    joined = np.concatenate([pairs[:, 0], np.ones_like(pairs[:, 0, :gap]), pairs[:, 1]], axis=1)
    canvas = tile(joined, PAIR_COLUMNS, gap=gap, row_gap=max(3, height // 4))
    return grid_figure(
        canvas,
        "Upper rows: test images $x$.  Lower rows: mean of $p(x|z)$ at $z$ = mean of $q(z|x)$",
    )


def samples(subject: Subject) -> Figure:
    """Means of p(x | z), z from the prior; y, where the model takes it, as in the test set."""
    shape = subject.event_shape
    picture_shape(shape)
    given: dict[str, Any] = {}
    if subject.conditional and subject.labels is not None:
        given["y"] = subject.labels[torch.arange(SAMPLES) % len(subject.labels)]
    sites = sample(
        subject.model, SAMPLES, like=subject.x[:1], guide=subject.guide, **subject.options, **given
    )
    return samples_figure(whole_images(sites, shape), subject.values)


def classes(subject: Subject) -> Figure:
    """Means of p(x | z, y): a row for each class y, the same random numbers z in every row."""
    shape, labels = subject.event_shape, subject.labels
    picture_shape(shape)
    if labels is None:
        raise DoesNotFit("the test images have no labels")
    if not Pair.of(subject.model, subject.guide).model.wants("y"):
        raise DoesNotFit("the model is not conditional on a class (its signature names no field y)")
    known = labels.unique()
    if len(known) > MOST_CLASSES:
        raise DoesNotFit(
            f"{len(known)} classes don't fit on a page, which has at most {MOST_CLASSES} rows"
        )
    rows = []
    for label in known:
        y = label.expand(CLASS_COLUMNS)
        sites = sample(
            subject.model,
            CLASS_COLUMNS,
            like=subject.x[:1],
            guide=subject.guide,
            **subject.options,
            y=y,
        )
        rows.append((subject.class_name(int(label)), whole_images(sites, shape)))
    title = (
        "Means of $p(x|z,y)$: one class $y$ a row, the same draw $z$ of the prior in each column"
    )
    return rows_figure(rows, subject.values, title)
