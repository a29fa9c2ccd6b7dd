"""A pair of programs, understood once: its parameters, its plate, its sites, its analytic KLs, its layout for many draws."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae import explain, held
from pyro_vae.batches import as_float
from pyro_vae.densities import (
    LAYOUTS,
    Draw,
    Fields,
    Geometry,
    Score,
    SiteTerms,
    plain_draw,
    plain_score,
    run_plain,
    run_repeat,
)
from pyro_vae.errors import UserError
from pyro_vae.program import ParameterStore, Program, PyrosStore, dry_run, modules_called, validation
from pyro_vae.structure import Structure

PROBE_IMAGES = 5
PROBE_DRAWS = 7


class Pair:
    """The engine's view of a model and its guide, in whatever form they are written."""

    def __init__(
        self, model: Callable[..., Any], guide: Callable[..., Any], store: ParameterStore | None = None
    ) -> None:
        explain.refuse_autoguide(guide)
        self.model = Program("model", model)
        self.guide = Program("guide", guide)
        self.store = ParameterStore() if store is None else store
        self._modules: dict[int, nn.Module] = {}
        self._modes: list[tuple[nn.Module, bool]] = []
        self._training: bool | None = None
        self._names: dict[int, tuple[str, str]] = {}
        self._structures: dict[Any, Structure] = {}
        self._layouts: dict[Any, str] = {}
        self._device: torch.device | None = None
        self.programs: OrderedDict[Any, Any] = OrderedDict()
        for program in (self.model, self.guide):
            for module in program.owner.modules() if program.owner is not None else ():
                self._modules.setdefault(id(module), module)

    @staticmethod
    def of(model: Callable[..., Any], guide: Callable[..., Any]) -> Pair:
        """The pair of these two, the same one at each call (by identity, methods by their object)."""
        key = (_identity(model), _identity(guide))
        if key not in _PAIRS:
            pair = _PAIRS[key] = Pair(model, guide)
            pair.store = _store_of(model, guide)
            while len(_PAIRS) > _MOST_PAIRS:
                _PAIRS.popitem(last=False)
        _PAIRS.move_to_end(key)
        return _PAIRS[key]

    @cached_property
    def in_pyros_store(self) -> Pair:
        """The same programs with Pyro's own parameter store, as stock SVI runs them."""
        return Pair(self.model.call, self.guide.call, PyrosStore())

    # ---- its parts

    @property
    def modules(self) -> list[nn.Module]:
        """Every module that the two programs are known to run."""
        return list(self._modules.values())

    def name_of(self, parameter: Tensor) -> tuple[str, str]:
        """The program that was first seen to use this parameter, and its name there: ``("model", "net.weight")``."""
        if id(parameter) not in self._names:  # one that only training reaches, or an unconstrained PyroParam
            for program in (self.guide, self.model):
                for name, own in program.owner.named_parameters() if program.owner is not None else ():
                    if own is parameter:
                        return program.role, name
        return self._names.get(id(parameter), ("captured", f"tensor of shape {tuple(parameter.shape)}"))

    def to(self, device: torch.device) -> Pair:
        """Move both programs' modules and the private parameters to ``device``, in place."""
        self._device = device
        for module in self.modules:
            module.to(device)
        for parameter in self.store.parameters.values():
            parameter.data = parameter.data.to(device)
        return self

    def tensors(self) -> list[Tensor]:
        """All that training changes: every parameter and buffer of the modules, and the private parameters."""
        found: dict[int, Tensor] = {}
        for module in self.modules:
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                found.setdefault(id(tensor), tensor)
        return [*found.values(), *self.store.parameters.values()]

    def cast(self, x: Tensor) -> Tensor:
        """``x`` in the dtype of the programs' parameters; as it is, or float32 for integers, where they have none."""
        for module in self.modules:
            for tensor in module.parameters(recurse=False):
                return x.to(tensor.dtype)
        for tensor in self.store.parameters.values():
            return x.to(tensor.dtype)
        return as_float(x)

    def keep(self, key: Any, program: Any) -> None:
        """Keep a staged program for a later call; whoever takes it from ``programs`` checks it against the pair first."""
        self.programs[key] = program
        self.programs.move_to_end(key)
        while len(self.programs) > _MOST_PROGRAMS:
            self.programs.popitem(last=False)

    # ---- running it

    @contextmanager
    def active(self, *, training: bool | None = None, may_create: bool = True) -> Iterator[None]:
        """The private store, validation off (a dry run has validated), modules in the mode asked for; all restored after."""
        outer, outer_may_create, num_known = (self._modes, self._training), self.store.may_create, len(self._modules)
        self._training = self._training if training is None else training
        self._modes = [] if training is None else [(module, module.training) for module in self.modules]
        self.store.may_create = may_create and outer_may_create
        try:
            for module, _ in self._modes:
                module.training = bool(training)
            with self.store.scope(), validation(distributions=False):
                yield
        finally:
            for module, mode in self._modes:
                module.training = mode
            (self._modes, self._training), self.store.may_create = outer, outer_may_create
            if self._training is not None:
                # a module that was met in here, in a closure, takes the mode that holds outside
                for module in self.modules[num_known:]:
                    self._modes.append((module, module.training))
                    module.training = self._training

    def run(
        self,
        x: Tensor,
        fields: Fields,
        num_particles: int = 1,
        layout: str | None = None,
        score: Score = plain_score,
        draw: Draw = plain_draw,
    ) -> SiteTerms:
        """The kernel, inside ``active``: the terms of ``num_particles`` draws at each image, ``(K, B)``."""
        geometry = replace(self.structure(x, fields).geometry, score=score, draw=draw)
        runner = run_plain if num_particles == 1 else LAYOUTS[layout or self.layout(x, fields)]
        with explain.one_sentence():
            return runner(self.model, self.guide, x, fields, num_particles, geometry)

    # ---- understanding it

    def structure(self, x: Tensor, fields: Fields) -> Structure:
        """The pair's structure, from a dry run on 5 and on 4 images like ``x``; a ``UserError`` explains a bad pair."""
        key = _like(x, fields)
        if key not in self._structures:
            try:
                with self.probing():
                    five = explain.trace_pair(self, *_probe(x, fields, PROBE_IMAGES))
                    four = explain.trace_pair(self, *_probe(x, fields, PROBE_IMAGES - 1))
                    structure = explain.read_structure(self, five, four)
                    if structure.summed:
                        structure = explain.check_enumeration(self, *_probe(x, fields, PROBE_IMAGES), structure)
                    self._structures[key] = replace(structure, **held.probe(self, *_probe(x, fields, PROBE_IMAGES)))
            except UserError:
                explain.refuse_broken_parameters(self)
                raise
        return self._structures[key]

    def layout(self, x: Tensor, fields: Fields) -> str:
        """The cheapest layout for many draws whose values, at 5 images and 7 draws, are those of repetition."""
        key = _like(x, fields)
        if key not in self._layouts:
            geometry = self.structure(x, fields).geometry
            self._layouts[key] = self._choose_layout(*_probe(x, fields, PROBE_IMAGES), geometry)
        return self._layouts[key]

    def _choose_layout(self, x: Tensor, fields: Fields, geometry: Geometry) -> str:
        with self.probing():
            torch.manual_seed(0)
            reference = run_repeat(self.model, self.guide, x, fields, PROBE_DRAWS, geometry)
            for name, runner in LAYOUTS.items():
                torch.manual_seed(0)
                try:
                    terms = runner(self.model, self.guide, x, fields, PROBE_DRAWS, geometry)
                except Exception:  # a layout that a user's program can't run under is not for it
                    continue
                if _same_terms(terms, reference):
                    return name
        return "repeat"

    @contextmanager
    def probing(self) -> Iterator[None]:
        """Eval mode, no gradients, the random state untouched; modules that a closure hides are found, and in eval mode."""

        def meet(module: nn.Module) -> None:
            if id(module) not in self._modules:
                self._modules[id(module)] = module if self._device is None else module.to(self._device)
                self._modes.append((module, module.training))
                module.training = False

        with torch.random.fork_rng(), torch.no_grad(), dry_run(), self.active(training=False), modules_called(meet):
            yield

    def note_parameters(self, program: Program) -> None:
        """Name the parameters that the store has seen since the last call as ``program``'s."""
        for name, parameter in self.store.seen.items():
            self._names.setdefault(id(parameter), (self._whose(parameter, program).role, name))
        self.store.seen.clear()

    def _whose(self, parameter: nn.Parameter, program: Program) -> Program:
        """``program``, or the other one where it is that one's module's alone: a guide may run its model."""
        other = self.guide if program is self.model else self.model
        return other if other.owns(parameter) and not program.owns(parameter) else program


_MOST_PAIRS, _MOST_PROGRAMS = 16, 12
_PAIRS: OrderedDict[Any, Pair] = OrderedDict()
_Stores = weakref.WeakKeyDictionary[Any, weakref.WeakKeyDictionary[Any, dict[Any, ParameterStore]]]
_STORES: _Stores = weakref.WeakKeyDictionary()


def _anchor(call: Callable[..., Any]) -> Any:
    return getattr(call, "__self__", call)


def _label(call: Callable[..., Any]) -> Any:
    return getattr(getattr(call, "__func__", None), "__qualname__", None)


def _identity(call: Callable[..., Any]) -> Any:
    return id(_anchor(call)), _label(call)


def _store_of(model: Callable[..., Any], guide: Callable[..., Any]) -> ParameterStore:
    """The store that lives as long as both programs do, so that what was trained is what is evaluated."""
    try:
        by_guide = _STORES.setdefault(_anchor(model), weakref.WeakKeyDictionary())
        return by_guide.setdefault(_anchor(guide), {}).setdefault((_label(model), _label(guide)), ParameterStore())
    except TypeError:  # a callable that can't be referred to weakly: its store lives as long as the pair
        return ParameterStore()


def _like(x: Tensor, fields: Fields) -> Any:
    rows = sorted((name, tuple(value.shape[1:]), value.dtype) for name, value in fields.items())
    return tuple(x.shape[1:]), x.dtype, x.device, tuple(rows)


def _probe(x: Tensor, fields: Fields, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The first ``size`` images and fields, the first ones again where there are fewer."""
    rows = torch.arange(size, device=x.device) % len(x)
    return x[rows], {name: value[rows.to(value.device)] for name, value in fields.items()}


def _same_terms(terms: SiteTerms, reference: SiteTerms) -> bool:
    """Whether every site's log density agrees, up to rounding, with the reference's."""
    for ours, theirs in zip(
        (terms.observed, terms.prior, terms.guide), (reference.observed, reference.prior, reference.guide), strict=True
    ):
        if ours.keys() != theirs.keys():
            return False
        for name in ours:
            a, b = ours[name].log_prob, theirs[name].log_prob
            tolerance = 1e3 * torch.finfo(b.dtype).eps
            if a.shape != b.shape or not torch.allclose(a, b, rtol=tolerance, atol=tolerance):
                return False
    return True
