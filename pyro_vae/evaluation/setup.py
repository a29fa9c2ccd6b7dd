"""The common set-up of all estimators of log p(x), and their protocol."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from pyro_vae import ambient
from pyro_vae.data.batches import Batch, Resident, Source
from pyro_vae.data.loaders import make_source, refuse_repeats
from pyro_vae.devices import find_device
from pyro_vae.evaluation.protocol import Quantity
from pyro_vae.evaluation.tiling import padded, rows_of
from pyro_vae.pair import observed_support
from pyro_vae.pair.log_weights import refuse_bad_weights
from pyro_vae.pair.program import without_scales
from pyro_vae.pair.runtime import Pair
from pyro_vae.pair.structure import Structure
from pyro_vae.rng import check_seed
from pyro_vae.training.oracle import check_scores

_MODE_DEPENDENT = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


class Setup:
    """An estimate under way: its pair on its device, its images as a source, and what is to be
    said.

    Raises:
        UserError: a seed or a device that is none; the pair is no pair.
    """

    source: Source
    first: Batch  # the source's first images, cast
    structure: Structure

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        seed: int,
        device: str | torch.device,
        progress: bool = False,
        ignore_scales: bool = False,
    ) -> None:
        check_seed(seed)
        self.seed, self.progress, self.ignore_scales = seed, progress, ignore_scales
        self.place = find_device(device)
        self.pair = Pair.of(model, guide).to(self.place)
        self.rows = rows_of(self.pair, self.place)  # draws times images of one run of the model
        self.notes = mode_notes(self.pair)
        self._quantity, self._checked, self._seen = Quantity(self.pair), "", 0

    def begin(
        self,
        x: Any,
        fields: Mapping[str, Any],
        tile: Callable[[int], int],
        check: Callable[[Structure], None] = refuse_bad_weights,
        supports: bool = True,
    ) -> None:
        """The images as a source in tiles of ``tile(N)``, and the first of them compared with stock
        Pyro; to be called inside `running`.

        Args:
            x: images ``(N, *event_shape)``, a Dataset or a DataLoader.
            check: refuses a structure whose weights would not be those of each image's p(x).
            supports: whether the guide is drawn from, so that its support matters.

        Raises:
            UserError: the number would not be log p(x) of each image.
        """
        refuse_repeats(x)
        self.source = make_source(x, fields, 1, self.place)
        self.source.batch_size = tile(self.source.num_images)
        if isinstance(self.source, Resident):
            observed_support.check_fields(self.pair, self.source.fields)
        images, named = next(self.source.in_order())
        self.first = self.pair.cast(images, named), named
        self.structure = self.pair.structure(*self.first)
        check(self.structure)
        if isinstance(self.source, Resident):
            observed_support.check_support_of_set(
                self.pair, self.source.num_images, self.source.part
            )
        self._checked, doubts = check_scores(self.pair, *self.first, supports=supports)
        self.notes += doubts

    @property
    def dtype_name(self) -> str:
        """``float32``: the programs' dtype, of which images are too, unless they are whole
        numbers.
        """
        return str(self.pair.dtype or self.first[0].dtype).removeprefix("torch.")

    def see(self, batch: Batch) -> None:
        """The next images that are scored, as they are given; each is to be seen once."""
        if not isinstance(self.source, Resident):
            x, fields = batch
            observed_support.check_all_support(self.pair, self.pair.cast(x), fields, self._seen)
            self._seen += len(x)
        self._quantity.see(batch)

    def tiles(self, size: int) -> tuple[Batch, Batch]:
        """A tile of the first images, and one of rows drawn from the whole set."""
        first, others = (
            padded(*batch, size, self.pair) for batch in (self.first, self.source.drawn(self.seed))
        )
        return first, others

    def say(self, text: str) -> None:
        """A line for the person who waits."""
        if self.progress:
            tqdm.write(text, file=sys.stderr)

    def protocol(
        self,
        how: Mapping[str, Any],
        given: Mapping[str, Any] | None,
        settings: Mapping[str, Any] | None = None,
        bits_offset: float | None = None,
    ) -> dict[str, Any]:
        """How it was estimated, of what, what was checked, and what the caller knows of the data;
        its notes become the estimate's.
        """
        known, said_of_it = self._quantity.told(bits_offset)
        number = self._quantity.num_images
        self.notes += said_of_it + self.source.counted(number)
        return {
            **how,
            "num_images": number,
            **({} if "precision" in how else {"precision": self.dtype_name}),
            **ambient.said(self.place),
            "seed": self.seed,
            **known,
            **({"scales": "ignored"} if self.ignore_scales else {}),
            "checked": self._checked,
            **(settings or {}),
            **(dict(given) if given else {"data": "as given"}),
        }

    @contextmanager
    def running(self) -> Iterator[None]:
        """Eval mode in float32, no gradients, the caller's random state kept."""
        with self.pair.measuring(self.place), without_scales(self.ignore_scales):
            yield


def mode_notes(pair: Pair) -> tuple[str, ...]:
    """What is to be said of modules that behave otherwise in train mode."""
    names = {
        type(m).__name__ for m in pair.modules if m.training and isinstance(m, _MODE_DEPENDENT)
    }
    note = "in train mode: evaluated in eval mode, because images must not depend on each other"
    return (f"{', '.join(sorted(names))} {note}",) if names else ()
