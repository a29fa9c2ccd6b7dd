"""A pair of programs, understood once: its parameters, its plates, its sites, its analytic KLs, its
layout for many draws.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.ambient import exact, turn
from pyro_vae.errors import UserError
from pyro_vae.fields import made_of
from pyro_vae.pair import dry_run as explain
from pyro_vae.pair.layouts import (
    LAYOUTS,
    Draw,
    Fields,
    Score,
    SiteTerms,
    plain_draw,
    plain_score,
    run,
)
from pyro_vae.pair.module_state import modules_called
from pyro_vae.pair.program import (
    ParameterStore,
    Program,
    PyrosStore,
    dry_run,
    handled,
    scales_ignored,
    validation,
)
from pyro_vae.pair.structure import Structure
from pyro_vae.rng import kept_randomness
from pyro_vae.tensors import as_float

PROBE_IMAGES = 5
PROBE_DRAWS = 7


@dataclass(eq=False)
class _Known:
    """What is known of two programs for as long as both live; it has no strong reference to either,
    nor to their modules.
    """

    store: ParameterStore = field(default_factory=ParameterStore)
    structures: dict[Any, Structure] = field(default_factory=dict)
    layouts: dict[Any, str] = field(default_factory=dict)
    # why whole numbers of such a shape and dtype don't stay what they are; empty where they do
    whole: dict[Any, str] = field(default_factory=dict)
    modules: weakref.WeakValueDictionary[int, nn.Module] = field(
        default_factory=weakref.WeakValueDictionary
    )
    names: weakref.WeakValueDictionary[tuple[str, str], Tensor] = field(
        default_factory=weakref.WeakValueDictionary
    )
    pair: Callable[[], Pair | None] = lambda: None  # the pair in use, if there is one
    parts: tuple[Any, ...] = ()  # references to what it is the knowledge of
    in_pyros_store: _Known | None = (
        None  # the same of these programs under Pyro's own parameter store
    )


_KNOWN: dict[Any, _Known] = {}  # by the parts' identities, until one of the parts is gone


class Pair:
    """The engine's view of a model and its guide, in whatever form they are written."""

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        store: ParameterStore | None = None,
    ) -> None:
        explain.refuse_autoguide(guide)
        self.model, self.guide = Program("model", model), Program("guide", guide)
        self.guide.take_places(self.model)
        self.model.take_places(self.guide)
        self._use(_Known() if store is None else _Known(store))
        self._met: list[
            tuple[nn.Module, bool]
        ] = []  # modules found on a run, with the mode that they had
        self._training: bool | None = None
        self._device: torch.device | None = None

    @staticmethod
    def of(model: Callable[..., Any], guide: Callable[..., Any]) -> Pair:
        """The pair of these two: what is known of it, and its parameters, live as long as both
        programs.

        Programs are known by identity, methods by their object and their function.
        """
        parts = _parts(model), _parts(guide)
        key = tuple(tuple(map(id, each)) for each in parts)
        known = _KNOWN.get(key)
        pair = None if known is None else known.pair()
        if pair is None:
            pair = Pair(model, guide)
            if known is None:
                known = _KNOWN[key] = pair._known
                known.parts = tuple(
                    _weakly(part, lambda _: _KNOWN.pop(key, None))
                    for part in (*parts[0], *parts[1])
                )
            pair._use(known)
        return pair

    def _use(self, known: _Known) -> None:
        self._known, self.store = known, known.store
        known.pair = weakref.ref(self)
        for program in (self.model, self.guide):
            for module in program.modules:
                known.modules.setdefault(id(module), module)

    @property
    def in_pyros_store(self) -> Pair:
        """The same programs with Pyro's own parameter store, as stock SVI runs them."""
        if self._known.in_pyros_store is None:
            self._known.in_pyros_store = _Known(PyrosStore())
        known = self._known.in_pyros_store
        pair = known.pair() or Pair(self.model.call, self.guide.call, known.store)
        pair._use(known)
        return pair

    # ---- its parts

    @property
    def modules(self) -> list[nn.Module]:
        """Every module that the two programs are known to run."""
        return list(self._known.modules.values())

    @property
    def was_run(self) -> bool:
        """Whether the programs have run, so that what they make and meet is known."""
        return bool(self._known.structures)

    def roots(self) -> list[tuple[str, nn.Module]]:
        """The modules that are in no other one, or are known by several names, each by its name:
        ``model``, ``guide``, ``model.net`` for what a function calls ``net``; "" for one that both
        programs are methods of.
        """
        shared = self.model.owner is not None and self.model.owner is self.guide.owner
        found: list[tuple[str, nn.Module]] = []
        covered: set[int] = set()
        for program in (self.model, self.guide):
            for name, module in program.roots:
                parts = [program.role] * (not shared or bool(name)) + [name] * bool(name)
                found.append((".".join(parts), module))
                covered.update(map(id, module.modules()))
        for number, module in enumerate(self.modules):  # those that only a run has met
            if id(module) not in covered:
                seen = [self._seen(p) for p in module.parameters()]
                pyros = [name for _, name in filter(None, seen) if "$$$" in name]
                own = pyros[0].partition("$$$")[0] if pyros else f"module{number}"
                found.append((own, module))
                covered.update(map(id, module.modules()))
        return found

    def name_of(self, parameter: Tensor) -> tuple[str, str]:
        """The program that was first seen to use this parameter, and its name there: ``("model",
        "net.weight")``.
        """
        if (seen := self._seen(parameter)) is not None:
            return seen
        for program in (
            self.guide,
            self.model,
        ):  # one that only training reaches, or an unconstrained PyroParam
            for name, own in program.owner.named_parameters() if program.owner is not None else ():
                if own is parameter:
                    return program.role, name
        return "captured", f"tensor of shape {tuple(parameter.shape)}"

    def _seen(self, parameter: Tensor) -> tuple[str, str] | None:
        return next((name for name, each in self._known.names.items() if each is parameter), None)

    def to(self, device: torch.device) -> Pair:
        """Move both programs' modules and the private parameters to ``device``, in place."""
        self._device = device
        for module in self.modules:
            module.to(device)
        for parameter in self.store.parameters.values():
            parameter.data = parameter.data.to(device)
        return self

    def tensors(self) -> list[Tensor]:
        """All that training changes: every parameter and buffer of the modules, and the private
        parameters.
        """
        found: dict[int, Tensor] = {}
        for module in self.modules:
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                found.setdefault(id(tensor), tensor)
        return [*found.values(), *self.store.parameters.values()]

    @property
    def dtype(self) -> torch.dtype | None:
        """That of the programs' real parameters, where they have any."""
        own = (
            parameter for module in self.modules for parameter in module.parameters(recurse=False)
        )
        for tensor in (*own, *self.store.parameters.values()):
            if tensor.is_floating_point():
                return tensor.dtype
        return None

    def cast(self, x: Tensor, fields: Fields | None = None) -> Tensor:
        """``x`` in the dtype of the programs' real parameters; as it is, or float32 for integers,
        where they have none.

        Whole numbers that are no grey levels (int32, int64: the numbers of words) stay what they
        are where both programs run on them, which is found out where the fields are at hand.
        """
        if x.dtype in (torch.int32, torch.int64):
            key = tuple(x.shape[1:]), x.dtype
            if key not in self._known.whole and fields is not None:
                self._known.whole[key] = self._why_not_whole(x, fields)
            if self._known.whole.get(key) == "":
                return x
        dtype = self.dtype
        return as_float(x) if dtype is None else x.to(dtype)

    def _why_not_whole(self, x: Tensor, fields: Fields) -> str:
        """Nothing where both programs run on whole numbers as they are, and the model draws images
        so.
        """
        try:
            self.store.before = frozenset(self.store.parameters)
            with self.probing():
                few = probe(x, fields, PROBE_IMAGES)
                explain.trace_pair(self, *few)[0].compute_log_prob()
                plain_draw(self.model, *few)
        except Exception as error:  # whatever a program raises on numbers of another kind
            return " ".join((str(error) or repr(error)).splitlines()[:2])
        finally:
            self.store.forget_new()
        return ""

    # ---- running it

    @contextmanager
    def active(self, *, training: bool | None = None, may_create: bool = True) -> Iterator[None]:
        """The private store, validation off (a dry run has validated), modules in the mode asked
        for; all restored after.

        Eval mode is float32 arithmetic, whatever the caller has set; one thread at a time is in
        here.
        """
        with turn(), exact() if training is False else nullcontext():
            outer, outer_may_create, num_met = self._training, self.store.may_create, len(self._met)
            modes = (
                [] if training is None else [(module, module.training) for module in self.modules]
            )
            self._training = outer if training is None else training
            self.store.may_create = may_create and outer_may_create
            try:
                for module, _ in modes:
                    module.training = bool(training)
                with self.store.scope(), validation(distributions=False):
                    yield
            finally:
                for module, mode in modes:
                    module.training = mode
                # a module that was met in here, in a closure, takes the mode that is outside
                for module, mode in self._met[num_met:] if outer is not None else self._met:
                    module.training = mode if outer is None else outer
                if outer is None:
                    self._met.clear()
                self._training, self.store.may_create = outer, outer_may_create

    def run(
        self,
        x: Tensor,
        fields: Fields,
        num_particles: int = 1,
        layout: str | None = None,
        score: Score = plain_score,
        draw: Draw = plain_draw,
        *,
        every_value: bool = False,
    ) -> SiteTerms:
        """The kernel, inside ``active``: the terms of ``num_particles`` draws at each image, ``(K,
        B)``; with ``every_value`` at all values of the sites that the guide asks to enumerate.
        """
        structure = self.structure(x, fields)
        values = structure.enumerated if every_value else {}
        geometry = replace(structure.geometry, score=score, draw=draw, enumerated=values)
        if num_particles == 1:
            layout = "repeat"
        elif layout is None:
            layout = self.layout(x, fields, every_value=every_value)
        return run(self.model, self.guide, x, fields, num_particles, geometry, layout)

    # ---- understanding it

    def structure(self, x: Tensor, fields: Fields, *, scored: bool = True) -> Structure:
        """The pair's structure, from a dry run on 5 and on 4 images like ``x``; a ``UserError``
        explains a bad pair.

        Args:
            scored: whether its sites are to be read by image; a pair of which that can't be done
                is refused then, though it trains.
        """
        key = _like(x, fields)
        if key not in self._known.structures:
            try:
                self.store.before = frozenset(self.store.parameters)
                with self.probing():
                    found = explain.understand(self, lambda size: probe(x, fields, size))
                self.store.refuse_left()
                self._known.structures[key] = found
            except UserError as error:
                self.store.forget_new()
                explain.refuse_broken_parameters(self)
                whole = [
                    why for (shape, _), why in self._known.whole.items() if shape == x.shape[1:]
                ]
                self._known.whole.clear()  # what is not understood may be otherwise after a fit
                if not any(whole) or str(error) == whole[0]:
                    raise
                raise UserError(f"{error}; and on whole numbers, as given: {whole[0]}") from error
        found = self._known.structures[key]
        if scored and found.unscored:
            raise UserError(found.unscored)
        return found

    def layout(self, x: Tensor, fields: Fields, *, every_value: bool = False) -> str:
        """The cheapest layout for many draws whose values, at 5 images and 7 draws, are those of
        repetition.
        """
        values = self.structure(x, fields).enumerated if every_value else {}
        key = _like(x, fields), bool(values)
        if key not in self._known.layouts:
            self._known.layouts[key] = self._choose_layout(x, fields, values)
        return self._known.layouts[key]

    def _choose_layout(self, x: Tensor, fields: Fields, values: dict[str, int]) -> str:
        geometry = replace(self.structure(x, fields).geometry, enumerated=values)

        def terms(layout: str) -> SiteTerms:
            torch.manual_seed(0)
            return run(
                self.model,
                self.guide,
                *probe(x, fields, PROBE_IMAGES),
                PROBE_DRAWS,
                geometry,
                layout,
            )

        with self.probing():
            reference = terms("repeat")
            for layout in (
                LAYOUTS[:-1] if not values else LAYOUTS[:1]
            ):  # merging rows takes draws without values
                try:
                    found = terms(layout)
                except Exception:  # a layout that a user's program can't run under is not for it
                    continue
                if _same_terms(found, reference):
                    return layout
        return "repeat"

    @contextmanager
    def measuring(self, place: torch.device, seed: int | None = None) -> Iterator[None]:
        """Eval mode, no gradients, no new parameters; the caller's random state is kept, and begins
        anew at the ``seed``.
        """
        with self.active(training=False, may_create=False), kept_randomness(place), torch.no_grad():
            if seed is not None:
                torch.manual_seed(seed)
            yield

    @contextmanager
    def probing(self) -> Iterator[None]:
        """Eval mode, no gradients, the random state untouched; modules that a closure hides are
        found, and in eval mode.
        """

        def meet(module: nn.Module) -> None:
            if id(module) not in self._known.modules:
                self._known.modules[id(module)] = (
                    module if self._device is None else module.to(self._device)
                )
                self._met.append((module, module.training))
                module.training = False

        with (
            dry_run(),
            self.active(training=False),
            torch.random.fork_rng(),
            torch.no_grad(),
            modules_called(meet),
        ):
            yield

    def note_parameters(self, program: Program) -> None:
        """Name the parameters that the store has seen since the last call as ``program``'s."""
        other = self.guide if program is self.model else self.model
        for name, parameter in self.store.seen.items():
            if (
                self._seen(parameter) is None
            ):  # a guide may run its model: the other's module alone has it
                whose = other if other.owns(parameter) and not program.owns(parameter) else program
                self._known.names[whose.role, name] = parameter
        self.store.seen.clear()


def _parts(call: Callable[..., Any]) -> tuple[Any, ...]:
    """What makes a program this one: an object and its function for a method, which is made anew at
    each access.
    """
    return (call.__self__, call.__func__) if inspect.ismethod(call) else handled(call) or (call,)


def _weakly(part: Any, gone: Callable[[Any], Any]) -> Any:
    try:
        return weakref.ref(part, gone)
    except TypeError:  # it can't be referred to weakly: its parameters are kept for good
        return part


def _like(x: Tensor, fields: Fields) -> Any:
    rows = sorted(
        (name, made_of(name), tuple(value.shape[1:]), value.dtype) for name, value in fields.items()
    )
    return tuple(x.shape[1:]), x.dtype, x.device, tuple(rows), scales_ignored()


def probe(x: Tensor, fields: Fields, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Copies of the first ``size`` images and fields, of the first ones again where there are
    fewer.
    """
    rows = torch.arange(size, device=x.device) % len(x)
    return x[rows], {name: value[rows.to(value.device)] for name, value in fields.items()}


def _same_terms(terms: SiteTerms, reference: SiteTerms) -> bool:
    """Whether every site's log density agrees, up to rounding, with the reference's."""
    found, expected = (
        {
            (i, n): site.log_prob
            for i, sites in enumerate((t.observed, t.prior, t.guide))
            for n, site in sites.items()
        }
        for t in (terms, reference)
    )
    return found.keys() == expected.keys() and all(
        close(found[key], value) for key, value in expected.items()
    )


def close(a: Tensor, b: Tensor) -> bool:
    tolerance = 1e3 * torch.finfo(b.dtype).eps
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
