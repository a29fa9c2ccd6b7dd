"""Size limits: what can't fit into memory is refused before it is begun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from pyro_vae import memory
from pyro_vae.choices import specs
from pyro_vae.errors import UserError, first_line
from pyro_vae.runs.options import Train

WORTH_COUNTING = 2000
"""From such a number in the options on the parameters are counted first."""

LARGEST = 10**8
"""No part has more of anything; one that is asked for 10⁹ layers may begin to make them before it
has a parameter to count.
"""

MOST_TENSORS = 20_000
"""Parameters of a model that someone trains are fewer."""


class _TooLarge(Exception):
    pass


def refuse_impossible(
    options: Train, event_shape: Sequence[int], build: Callable[[], object]
) -> None:
    """A ``UserError`` where the pair that ``build`` makes has more parameters than there is memory:
    it is made without numbers first, and counted.
    """
    parts = (options.model, options.prior, options.likelihood, options.guide, options.net)
    written = [each for part in parts for each in specs.within(specs.parse(part))]
    largest = max([0, *(each for each in written if isinstance(each, int))])
    if largest > LARGEST:
        raise UserError(f"{largest} is too large for the size of a part: choose smaller parts")
    if max(prod(event_shape) // 1000, options.latent_dim, largest) < WORTH_COUNTING:
        return
    tensors, held = 0, 0

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal tensors, held
        if isinstance(parameter, torch.Tensor):
            tensors, held = tensors + 1, held + parameter.numel() * parameter.element_size()
        if tensors > MOST_TENSORS or held > memory.limit():
            raise _TooLarge

    handle = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            build()
    except _TooLarge:
        have = (
            f"{memory.in_words(held)} of parameters, but there are only "
            f"{memory.in_words(memory.limit())} of memory"
        )
        what = have if tensors <= MOST_TENSORS else f"more than {MOST_TENSORS} parameter tensors"
        raise UserError(f"this pair has {what}: choose smaller parts") from None
    except UserError:
        raise
    except (
        Exception
    ) as error:  # what is wrong otherwise is reported when the pair is made in earnest
        if any(words in str(error).lower() for words in ("overflow", "storage size")):
            raise UserError(
                f"this pair does not fit into any memory ({first_line(error)}): choose smaller "
                "parts"
            ) from error
    finally:
        handle.remove()
