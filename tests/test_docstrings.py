"""Every public name says what it takes and what it gives."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

import pyro_vae
from pyro_vae import guides, models, nn, objectives

SPACES = {"": pyro_vae, "models.": models, "guides.": guides, "nn.": nn, "objectives.": objectives}
PUBLIC = {
    f"{space}{name}": (module, name) for space, module in SPACES.items() for name in module.__all__
}

SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields|Reference|Example|Examples):$", re.M)


def sections(text: str) -> dict[str, str]:
    """The parts of a docstring by their headings."""
    parts = SECTION.split(text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def described(text: str) -> set[str]:
    """The names that Args and Attributes describe: ``name: …`` or ``one, other: …``."""
    found = sections(text)
    lines = "\n".join(found.get(part, "") for part in ("Args", "Attributes"))
    named = re.findall(r"^    (\*{0,2}\w+(?:, ?\*{0,2}\w+)*):", lines, re.M)
    return {name.strip(" *") for line in named for name in line.split(",")}


def missing(part: Any) -> Iterator[str]:
    """What the docstring lacks."""
    text = inspect.cleandoc(part.__doc__ or "")  # a class's own, not that of its base
    if not text:
        yield "a docstring"
        return
    try:
        signature = inspect.signature(part)
    except (TypeError, ValueError):
        return
    names = [
        p.name for p in signature.parameters.values() if p.name not in ("self", "args", "kwargs")
    ]
    comments = inspect.getsource(part) if dataclasses.is_dataclass(part) else ""
    for name in names:
        said = re.search(rf"^    {name}: [^\n]*(  # |\n    # )", comments, re.M)
        if name not in described(text) and not said:
            yield name
    gives = inspect.isfunction(part) and signature.return_annotation not in (None, "None")
    if gives and "Returns" not in sections(text):
        yield "Returns"


SOURCES = [
    *[f"models.{name}" for name in models.__all__],
    *[f"guides.{name}" for name in guides.__all__ if name != "Empty"],
    *("objectives.IWAE", "objectives.DReG", "fit", "log_marginal", "ais", "bdmc", "refine"),
    *("impute", "denoise", "diagnose", "sbc_ranks", "compare", "LogMarginal"),
]


@pytest.mark.parametrize("public", SOURCES)
def test_a_docstring_names_its_source(public: str) -> None:
    module, name = PUBLIC[public]
    said = sections(inspect.cleandoc(getattr(module, name).__doc__))["Reference"]
    assert re.search(r"\b(19|20)\d\d\b", said)


@pytest.mark.parametrize("public", PUBLIC)
def test_a_docstring_names_each_argument_and_the_result(public: str) -> None:
    module, name = PUBLIC[public]
    lacks = list(missing(getattr(module, name)))
    assert not lacks, f"{public}: {', '.join(lacks)}"
