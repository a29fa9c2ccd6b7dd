"""Choices that name what is no part, in all places of a choice: nothing is called, all is refused
in a line.
"""

from __future__ import annotations

import functools
import importlib
import random
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from pyro_vae.choices import lookup, registry
from pyro_vae.choices.lookup import NAMESPACES
from pyro_vae.errors import UserError

EVERYDAY, STRESS = 200, 10_000
"""Choices."""

PLACES = [
    *("os", "subprocess", "shutil", "runpy", "importlib", "pickle", "builtins", "pathlib", "sys"),
    *("ctypes", "code", "codecs", "socket", "tempfile", "zipfile", "json", "types", "functools"),
    *(
        "torch",
        "torch.hub",
        "torch.serialization",
        "torch.utils.collect_env",
        "torch.nn.functional",
    ),
    *("torch.distributions", "torch.multiprocessing", "numpy", "numpy.lib.format", "pyro"),
    *("pyro.distributions", "pyro.infer", "pyro.poutine", "setuptools._distutils.spawn"),
    *(
        "pyro_vae.files",
        "pyro_vae.choices.registry",
        "pyro_vae.data.datasets",
        "pyro_vae.training.fit",
    ),
]
"""Modules with all kinds of things to call."""

CONTEXT: dict[str, Any] = {"event_shape": (1, 2, 2), "latent_dim": 2, "net": "MLP", "num_data": 9}
CALLED: list[str] = []
LURES = """
import functools
from test_lures_log import CALLED

def function(*args, **kwargs): CALLED.append("function")
def of_source(source): CALLED.append("of_source"); return 1
def generator(*args, **kwargs):
    CALLED.append("generator")
    yield 1
async def coroutine(*args, **kwargs): CALLED.append("coroutine")
late = lambda *args, **kwargs: CALLED.append("late")
cached = functools.lru_cache(function)
partial = functools.partial(function, 1)

class Plain:
    def __init__(self, *args, **kwargs): CALLED.append("Plain")
    def method(self, *args, **kwargs): CALLED.append("method")
    @classmethod
    def of_class(cls, *args, **kwargs): CALLED.append("of_class")
class New:
    def __new__(cls, *args, **kwargs): CALLED.append("New")
class Meta(type):
    def __call__(cls, *args, **kwargs): CALLED.append("Meta")
class Made(metaclass=Meta): pass
class Object:
    def __call__(self, *args, **kwargs): CALLED.append("Object")
class Odd(Plain): slot = "no such slot"
class Number(Plain): slot = 3
class Slots(Plain): slot = ["guide", "model", "prior"]
instance, of_instance, of_class = Object(), Object().__call__, Plain.of_class
"""
NAMES = [
    *("function", "of_source", "generator", "coroutine", "late", "cached", "partial", "Plain"),
    *("New", "Made", "Odd", "Number", "Slots", "instance", "of_instance", "of_class"),
]


@pytest.fixture(scope="module")
def lures() -> Iterator[None]:
    """A module, and a log of what is called of it."""
    log, module = ModuleType("test_lures_log"), ModuleType("test_lures")
    vars(log)["CALLED"] = CALLED
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "test_lures_log", log)
        patched.setitem(sys.modules, "test_lures", module)
        patched.setattr(lookup, "entries", lambda slot: ())  # a search of the disk each time
        exec(LURES, vars(module))
        CALLED.clear()
        yield


@functools.cache
def references() -> list[str]:
    """Of installed packages."""
    found = []
    for place in PLACES:
        module = importlib.import_module(place)
        found += [
            f"{place}:{name}"
            for name in dir(module)
            if name.isidentifier() and callable(getattr(module, name, None))
        ]
    return found


def choice(words: random.Random, reference: str) -> str:
    """A choice in which the reference has some place, with arguments or without."""
    values = ["1", "'x'", "[]", "0.5", "(2, 3)", "None", "learned", "MLP(hidden=2)"]
    arguments = [words.choice(values) for _ in range(words.randint(0, 2))]
    if words.random() < 0.3:
        arguments.append(f"{words.choice(['x', 'f', 'source', 'args'])}={words.choice(values)}")
    call = f"{reference}({', '.join(arguments)})" if words.random() < 0.8 else reference
    places = [
        *("{}", "{}", "{}", "Gaussian(scale={})", "Gaussian(net={})", "IAF(depth={})", "[{}]"),
        *("MLP(activation={})", "MLP(hidden=({}, 2))", "Adam(betas=({}, 0.9))", "VampPrior({})"),
        *("GenerativeModel(prior={})", "MeanField(net=MLP(hidden={}))", "Cyclical(cycles={})"),
    ]
    return words.choice(places).format(call)


@pytest.mark.parametrize(
    "number", [EVERYDAY, pytest.param(STRESS, marks=pytest.mark.stress)], ids=["everyday", "stress"]
)
def test_nothing_is_called_that_is_no_part(number: int, lures: None) -> None:
    """By any slot, bare or with arguments, as a part or within one."""
    words = random.Random(0)
    for _ in range(number):
        lure = words.random() < 0.5
        reference = f"test_lures:{words.choice(NAMES)}" if lure else words.choice(references())
        slot, spec = words.choice(list(NAMESPACES)), choice(words, reference)
        try:
            registry.build(slot, spec, **CONTEXT)
        except UserError as refused:
            assert "\n" not in str(refused), (slot, spec)
        assert not CALLED, (slot, spec)
