"""The `Pair`: a model and a guide with their parameters, plates, sites, closed KLs, and the layout
for many draws.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.ambient import exact, turn
from pyro_vae.errors import UserError
from pyro_vae.pair.comparison import PROBE_IMAGES, cheapest_layout, probe
from pyro_vae.pair.dry_run import understand
from pyro_vae.pair.layouts import run
from pyro_vae.pair.module_state import modules_called
from pyro_vae.pair.nodes import Draw, Fields, Score, plain_draw, plain_score
from pyro_vae.pair.parameter_store import PyrosStore, dry_run
from pyro_vae.pair.program import Program, validation
from pyro_vae.pair.structure import KNOWN, Known, Structure, like, parts_of, weakly
from pyro_vae.pair.terms import SiteTerms
from pyro_vae.pair.trial import refuse_autoguide, refuse_broken_parameters, why_not_whole
from pyro_vae.rng import kept_randomness
from pyro_vae.tensors import as_float


class Pair:
    """A model and its guide, as the engine runs them. Get one by `Pair.of`.

    Any form of Pyro program will do. The pair knows the parameters, the modules and the structure
    (sites, plates, closed KLs) of the two.

    Args:
        model, guide: Pyro programs, as `fit` takes them.
        known: what is known of them, with their parameter store; by default nothing.
    """

    def __init__(
        self, model: Callable[..., Any], guide: Callable[..., Any], known: Known | None = None
    ) -> None:
        refuse_autoguide(guide)
        self.model, self.guide = Program("model", model), Program("guide", guide)
        self.guide.take_places(self.model)
        self.model.take_places(self.guide)
        self._known = known or Known()
        self.store, self._known.pair = self._known.store, weakref.ref(self)
        for module in (*self.model.modules, *self.guide.modules):
            self._known.modules.setdefault(id(module), module)
        # modules found on a run, with the mode that they had
        self._met: list[tuple[nn.Module, bool]] = []
        self._training: bool | None = None
        self._device: torch.device | None = None

    @staticmethod
    def of(model: Callable[..., Any], guide: Callable[..., Any]) -> Pair:
        """The pair of these two programs, always the same one while both exist.

        Programs are compared by identity; bound methods by their object and their function.
        """
        parts = parts_of(model), parts_of(guide)
        key = tuple(tuple(map(id, each)) for each in parts)
        if (known := KNOWN.get(key)) is not None:
            return known.pair() or Pair(model, guide, known)
        pair = Pair(model, guide)
        KNOWN[key], gone = pair._known, lambda _: KNOWN.pop(key, None)
        pair._known.parts = tuple(weakly(part, gone) for part in (*parts[0], *parts[1]))
        return pair

    @property
    def in_pyros_store(self) -> Pair:
        """The same programs with Pyro's own parameter store, as stock SVI runs them."""
        known = self._known.in_pyros_store = self._known.in_pyros_store or Known(PyrosStore())
        return known.pair() or Pair(self.model.call, self.guide.call, known)

    # ---- its parts

    @property
    def modules(self) -> list[nn.Module]:
        """Every module that the two programs are known to run."""
        return list(self._known.modules.values())

    @property
    def was_run(self) -> bool:
        """Whether the programs have run, so that their parameters and modules are known."""
        return bool(self._known.structures)

    def name_of(self, parameter: Tensor) -> tuple[str, str]:
        """The program that uses this parameter, and its name there: ``("model", "net.weight")``."""
        if (seen := self.seen(parameter)) is not None:
            return seen
        for program in (self.guide, self.model):
            # one that only training reaches, or an unconstrained PyroParam
            for name, own in program.owner.named_parameters() if program.owner is not None else ():
                if own is parameter:
                    return program.role, name
        return "captured", f"tensor of shape {tuple(parameter.shape)}"

    def seen(self, parameter: Tensor) -> tuple[str, str] | None:
        """The program that used this parameter in a run, and its name there; None if none did."""
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
        """All tensors that training changes: parameters and buffers of the modules, and the pair's
        own parameters.
        """
        own = ((m.parameters(recurse=False), m.buffers(recurse=False)) for m in self.modules)
        found = {id(tensor): tensor for each in own for tensor in chain(*each)}
        return [*found.values(), *self.store.parameters.values()]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of each module, and the private ones, one by one: a step asks for the first."""
        own = (module.parameters(recurse=False) for module in self.modules)
        return chain(chain.from_iterable(own), self.store.parameters.values())

    def buffers(self) -> list[Tensor]:
        """The buffers of the modules."""
        return [buffer for module in self.modules for buffer in module.buffers(recurse=False)]

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the programs' real parameters, or None."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), None)

    def cast(self, x: Tensor, fields: Fields | None = None, *, at_once: bool = False) -> Tensor:
        """``x`` in the dtype of the programs' real parameters; as it is, or float32 for integers,
        where they have none.

        Whole numbers that are no grey levels (int32, int64: the numbers of words) stay what they
        are where both programs run on them, which is found out where the fields are at hand, on a
        few images, or ``at_once``.
        """
        if x.dtype in (torch.int32, torch.int64):
            key = tuple(x.shape[1:]), x.dtype
            if key not in self._known.whole and fields is not None:
                few = probe(x, fields, len(x) if at_once else PROBE_IMAGES)
                self._known.whole[key] = why_not_whole(self, *few)
            if self._known.whole.get(key) == "":
                return x
        dtype = self.dtype
        return as_float(x) if dtype is None else x.to(dtype)

    # ---- running it

    @contextmanager
    def active(self, *, training: bool | None = None, may_create: bool = True) -> Iterator[None]:
        """Inside: the pair's own parameter store, no validation, modules in the mode asked for.

        All is restored afterwards. Eval mode uses float32 arithmetic, whatever the caller has set.
        One thread at a time can be inside.
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
        """The log densities of every site at ``num_particles`` draws for each image; call it inside
        `active`.

        Args:
            x: a batch of images ``(B, *event_shape)``.
            fields: named arguments, one row for each image.
            num_particles: K, the number of draws for each image.
            layout: how the K draws are run; by default the cheapest that is right.
            score, draw: how sites are scored and how the guide draws.
            every_value: whether sites that the guide asks to enumerate take all their values.

        Returns:
            The terms of each site, ``(K, B)``, nats.
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

    def structure(
        self, x: Tensor, fields: Fields, *, scored: bool = True, at_once: bool = False
    ) -> Structure:
        """The pair's structure, from a dry run on 5 and on 4 images like ``x``; a ``UserError``
        explains a bad pair.

        Args:
            scored: whether its sites are to be read by image; a pair of which that can't be done
                is refused then, though it trains.
            at_once: whether a pair that can't run on a few images may be read on all of these.
        """
        key = like(x, fields)
        if key not in self._known.structures:
            try:
                self.store.before = frozenset(self.store.parameters)
                with self.probing():
                    found = understand(self, lambda size: probe(x, fields, size), len(x) * at_once)
                self.store.refuse_left()
                self._known.structures[key] = found
            except UserError as error:
                self.store.forget_new()
                refuse_broken_parameters(self)
                kinds = self._known.whole.items()
                whole = next((why for (shape, _), why in kinds if shape == x.shape[1:]), "")
                self._known.whole.clear()  # what is not understood may be otherwise after a fit
                if whole in ("", str(error)):
                    raise
                raise UserError(f"{error}; and on whole numbers, as given: {whole}") from error
        found = self._known.structures[key]
        if scored and found.unscored:
            raise UserError(found.unscored)
        return found

    def layout(self, x: Tensor, fields: Fields, *, every_value: bool = False) -> str:
        """The cheapest layout for many draws whose values agree with those of plain repetition."""
        values = self.structure(x, fields).enumerated if every_value else {}
        key = like(x, fields), bool(values)
        if key not in self._known.layouts:
            self._known.layouts[key] = cheapest_layout(self, x, fields, values)
        return self._known.layouts[key]

    @contextmanager
    def measuring(self, place: torch.device, seed: int | None = None) -> Iterator[None]:
        """Inside: eval mode, no gradients, no new parameters, random numbers from ``seed``; all
        restored afterwards.
        """
        with self.active(training=False, may_create=False), kept_randomness(place), torch.no_grad():
            if seed is not None:
                torch.manual_seed(seed)
            yield

    @contextmanager
    def probing(self) -> Iterator[None]:
        """Inside: eval mode, no gradients, an unchanged random state; modules that a closure hides
        are found.
        """

        def meet(module: nn.Module) -> None:
            known = self._known.modules
            if id(module) not in known:
                known[id(module)] = module if self._device is None else module.to(self._device)
                self._met.append((module, module.training))
                module.training = False

        active = self.active(training=False)
        with dry_run(), active, torch.random.fork_rng(), torch.no_grad(), modules_called(meet):
            yield

    def note_parameters(self, program: Program) -> None:
        """Name the parameters that the store has seen since the last call after ``program``."""
        other = self.guide if program is self.model else self.model
        for name, parameter in self.store.seen.items():
            # a guide may run its model: the other's module alone has it
            if self.seen(parameter) is None:
                whose = other if other.owns(parameter) and not program.owns(parameter) else program
                self._known.names[whose.role, name] = parameter
        self.store.seen.clear()
