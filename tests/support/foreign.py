"""Programs as other people write them: one small model, linear and Gaussian, in many spellings.

z ~ N(0, I), x | z ~ N(z W + b, σ²), float64. Where a spelling leaves the numbers as they are, the
guide begins at the exact posterior, so that every log weight is log p(x).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import config_enumerate
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

D: dict[str, Any] = {"dtype": torch.float64}
N, PIXELS, CODES, SIGMA = 9, 3, 2, 0.6
_random = torch.Generator().manual_seed(5)
W = torch.randn(CODES, PIXELS, generator=_random, **D)
X = torch.randn(N, PIXELS, generator=_random, **D)
COVARIANCE = (torch.eye(CODES, **D) + W @ W.T / SIGMA**2).inverse()
Z = torch.zeros(CODES, **D)


def exact(x: Tensor = X) -> Tensor:
    """log p(x) of each image."""
    marginal = W.T @ W + SIGMA**2 * torch.eye(PIXELS, **D)
    return dist.MultivariateNormal(torch.zeros(PIXELS, **D), marginal).log_prob(x)


class Vae(nn.Module):
    """The two programs as methods, in the usual spelling; its parts serve the others."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(W.clone())
        self.b = nn.Parameter(torch.zeros(PIXELS, **D))
        self.encoder = nn.Linear(PIXELS, CODES, **D)
        with torch.no_grad():
            self.encoder.weight.copy_(COVARIANCE @ W / SIGMA**2)
            self.encoder.bias.zero_()

    def prior(self) -> Any:
        """p(z)."""
        return dist.Normal(Z, 1.0).to_event(1)

    def decode(self, z: Tensor) -> Any:
        """p(x | z)."""
        return dist.Normal(z @ self.w + self.b, SIGMA).to_event(1)

    def posterior(self, x: Tensor) -> Any:
        """q(z | x)."""
        return dist.MultivariateNormal(self.encoder(x), COVARIANCE)

    def model(self, x: Tensor) -> Any:
        """As in Pyro's tutorial."""
        pyro.module("vae", self)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """The same."""
        pyro.module("vae", self)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", self.posterior(x))


@dataclass
class Foreign:
    """A spelling, its data, and what is true of it."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    x: Tensor = field(default_factory=X.clone)
    fields: dict[str, Any] = field(default_factory=dict)
    log_px: Tensor | None = None  # at hand where it is not `exact`
    refused: str = ""  # why log p(x) can't be had, a pattern
    objective: str = "Trace_ELBO"
    plain: bool = False  # log p(x) is that of plain draws by stock Pyro


SPELLINGS: dict[str, Callable[[], Foreign]] = {}


def spelling(make: Callable[[], Foreign]) -> Callable[[], Foreign]:
    """One of the list."""
    SPELLINGS[make.__name__] = make
    return make


# ---- what a program is


@spelling
def methods() -> Foreign:
    """Bound methods of a bare module."""
    v = Vae()
    return Foreign(v.model, v.guide)


@spelling
def functions_with_params() -> Foreign:
    """No module at all."""

    def model(x: Tensor) -> None:
        b = pyro.param("b", torch.zeros(PIXELS, **D))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(Z, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ W + b, SIGMA).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        to_z = pyro.param("to_z", lambda: (COVARIANCE @ W / SIGMA**2).T.clone())
        scale = pyro.param("scale", torch.tensor(1.0, **D), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(x @ to_z, COVARIANCE * scale))

    return Foreign(model, guide)


@spelling
def pyro_modules() -> Foreign:
    """Programs that are modules, with a constrained parameter."""

    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.sigma = PyroParam(torch.tensor(SIGMA, **D), constraint=dist.constraints.positive)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(Z, 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z @ W, self.sigma).to_event(1), obs=x)

    return Foreign(Model(), Vae().guide)


@spelling
def bare_modules_called() -> Foreign:
    """``nn.Module`` with ``forward``, no ``pyro.module`` in it."""

    class Guide(nn.Module):
        def __init__(self, v: Vae) -> None:
            super().__init__()
            self.v = v

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.v.posterior(x))

    v = Vae()
    return Foreign(v.model, Guide(v))


@spelling
def closures() -> Foreign:
    """Networks in the closure alone, never registered."""
    v = Vae()

    def model(batch: Tensor) -> None:
        with pyro.plate("data", len(batch)):
            pyro.sample("x", v.decode(pyro.sample("z", v.prior())), obs=batch)

    def guide(observations: Tensor) -> None:
        with pyro.plate("data", len(observations)):
            pyro.sample("z", v.posterior(observations))

    return Foreign(model, guide)


@spelling
def partials() -> Foreign:
    """The module by position, a constant by name."""

    def model(v: Vae, x: Tensor, beta: float = 2.0) -> None:
        pyro.module("v", v)
        with pyro.plate("data", len(x)):
            pyro.sample("x", v.decode(pyro.sample("z", v.prior()) * beta), obs=x)

    def guide(v: Vae, x: Tensor, beta: float = 2.0) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", v.posterior(x * beta))

    v = Vae()
    return Foreign(*(functools.partial(p, v, beta=1.0) for p in (model, guide)))


@spelling
def wrappers() -> Foreign:
    """Decorated without ``functools.wraps``: no signature is left."""

    def logged(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return call(*args, **kwargs)

        return wrapper

    v = Vae()
    return Foreign(logged(v.model), logged(v.guide))


@spelling
def callable_objects() -> Foreign:
    """Objects with ``__call__`` that are no modules."""

    class Callable_:
        def __init__(self, call: Any) -> None:
            self.inner = call

        def __call__(self, data: Tensor) -> Any:
            return self.inner(data)

    v = Vae()
    return Foreign(Callable_(v.model), Callable_(v.guide))


@spelling
def static_methods() -> Foreign:
    """A class as a name space."""

    class Programs:
        v = Vae()

        @staticmethod
        def model(x: Tensor) -> Any:
            return Programs.v.model(x)

        @classmethod
        def guide(cls, x: Tensor) -> Any:
            return cls.v.guide(x)

    return Foreign(Programs.model, Programs.guide)


@spelling
def pyro_methods() -> Foreign:
    """Under a decorator that has ``functools.wraps``; the joint density, conditioned in a plate."""

    class Methods(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.v = Vae()

        def joint(self) -> None:
            pyro.sample("x", self.v.decode(pyro.sample("z", self.v.prior())))

        @pyro_method
        def model(self, x: Tensor, shift: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.condition(self.joint, data={"x": x - shift})()

        @pyro_method
        def guide(self, x: Tensor, shift: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.v.posterior(x - shift))

    v = Methods()
    return Foreign(v.model, v.guide, X + SHIFT, {"shift": SHIFT})


@spelling
def easy_guide() -> Foreign:
    """Pyro's EasyGuide, whose plate is its own."""

    class Guide(EasyGuide):
        def __init__(self, v: Vae) -> None:
            super().__init__(v.model)
            self.v = v

        def guide(self, x: Tensor) -> None:
            with self.plate("data", len(x)):
                pyro.sample("z", self.v.posterior(x))

    v = Vae()
    return Foreign(v.model, Guide(v))


@spelling
def handlers_around() -> Foreign:
    """``poutine`` handlers as functions, one within the other."""
    v = Vae()
    return Foreign(
        poutine.scale(poutine.mask(v.model, mask=True), scale=1.0),
        config_enumerate(poutine.scale(v.guide, scale=1.0)),
    )


class Decorated(Vae):
    """Methods decorated in the class's body."""

    @poutine.scale(scale=1.0)
    @config_enumerate
    def model(self, x: Tensor) -> Any:
        """Two handlers on a method."""
        return super().model(x)

    @poutine.mask(mask=True)
    def guide(self, x: Tensor) -> None:
        """One."""
        super().guide(x)


@spelling
def decorated_methods() -> Foreign:
    """Handlers as decorators of methods."""
    v = Decorated()
    return Foreign(v.model, v.guide)


# ---- plates


def in_plate(v: Vae, enter: Callable[[Tensor], Any]) -> tuple[Any, Any]:
    """The two programs within what ``enter`` makes of the batch."""

    def model(x: Tensor) -> None:
        pyro.module("vae", v)
        with enter(x):
            z = pyro.sample("z", v.prior().expand([len(x)]))
            pyro.sample("x", v.decode(z), obs=x)

    def guide(x: Tensor) -> None:
        with enter(x):
            pyro.sample("z", v.posterior(x))

    return model, guide


@spelling
def plate_without_a_size() -> Foreign:
    """Pyro takes it from the sites."""
    return Foreign(*in_plate(Vae(), lambda x: pyro.plate("data")))


@spelling
def plate_of_given_rows() -> Foreign:
    """``subsample=`` with every row."""
    return Foreign(
        *in_plate(Vae(), lambda x: pyro.plate("data", len(x), subsample=torch.arange(len(x))))
    )


@spelling
def plate_by_its_dimension() -> Foreign:
    """``dim=-1``, and a device."""
    return Foreign(*in_plate(Vae(), lambda x: pyro.plate("data", len(x), dim=-1, device=x.device)))


@spelling
def plate_entered_twice() -> Foreign:
    """One plate object, one ``with`` a site."""
    v = Vae()

    def model(x: Tensor) -> None:
        rows = pyro.plate("data", len(x))
        with rows:
            z = pyro.sample("z", v.prior())
        mean = z @ v.w + v.b
        with rows:
            pyro.sample("x", dist.Normal(mean, SIGMA).to_event(1), obs=x)

    return Foreign(model, v.guide)


@spelling
def plates_of_pixels() -> Foreign:
    """Images at −2, pixels at −1, in place of an event."""
    v = Vae()

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(Z, 1.0).expand([len(x), 1, CODES]).to_event(1))
            with pyro.plate("pixels", PIXELS, dim=-1):
                mean = (z @ v.w).squeeze(-2) + v.b
                pyro.sample("x", dist.Normal(mean, SIGMA), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x), dim=-2):
            pyro.sample("z", v.posterior(x.unsqueeze(-2)))

    return Foreign(model, guide)


@spelling
def codes_in_a_plate_of_their_own() -> Foreign:
    """Two plates of as many rows."""
    v = Vae()

    def model(x: Tensor) -> None:
        with pyro.plate("codes", len(x)):
            z = pyro.sample("z", v.prior())
        with pyro.plate("images", len(x)):
            pyro.sample("x", v.decode(z), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("codes", len(x)):
            pyro.sample("z", v.posterior(x))

    return Foreign(model, guide)


@spelling
def plate_stacks() -> Foreign:
    """``pyro.plate_stack``."""
    return Foreign(*in_plate(Vae(), lambda x: pyro.plate_stack("data", (len(x),))))


@spelling
def plate_as_a_loop() -> Foreign:
    """``for i in pyro.plate``: Pyro trains it; its sites are no rows."""
    v = Vae()

    def model(x: Tensor) -> None:
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"x_{i}", v.decode(pyro.sample(f"z_{i}", v.prior())), obs=x[i])

    def guide(x: Tensor) -> None:
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"z_{i}", v.posterior(x[i]))

    return Foreign(model, guide, refused="sites change with the number of images")


@spelling
def plate_that_takes_some() -> Foreign:
    """``subsample_size=`` within the batch."""
    v = Vae()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=3) as rows:
            pyro.sample("x", v.decode(pyro.sample("z", v.prior())), obs=x[rows])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=3) as rows:
            pyro.sample("z", v.posterior(x[rows]))

    return Foreign(model, guide, refused="plate 'data' takes 3 of its 5 images")


@spelling
def plate_of_the_whole_set() -> Foreign:
    """A size above the batch's: a scale, in training alone."""
    enter = lambda x: pyro.plate("data", 50, subsample_size=len(x))  # noqa: E731
    return Foreign(*in_plate(Vae(), enter), refused="subsamples")


# ---- what is given beside x


@spelling
def none_for_a_field() -> Foreign:
    """The commonest default, given."""
    v = Vae()

    def model(x: Tensor, y: Tensor | None = None) -> None:
        v.model(x if y is None else x * torch.nan)

    def guide(x: Tensor, y: Tensor | None = None) -> None:
        v.guide(x if y is None else x * torch.nan)

    return Foreign(model, guide, fields={"y": None})


def shifted(v: Vae, shift_of: Callable[..., Any]) -> tuple[Any, Any]:
    """Programs that take their shift of x from ``shift_of(**fields)``, through ``**kwargs``."""

    def model(x: Tensor, **given: Any) -> None:
        v.model(x - shift_of(**given))

    def guide(x: Tensor, **given: Any) -> None:
        v.guide(x - shift_of(**given))

    return model, guide


SHIFT = torch.linspace(-1.0, 1.0, N, **D)[:, None]


@spelling
def fields_through_kwargs() -> Foreign:
    """No name in the signature."""
    programs = shifted(Vae(), lambda dose: dose)
    return Foreign(*programs, X + SHIFT, {"dose": SHIFT})


@spelling
def keyword_only_fields() -> Foreign:
    """After a star, and required."""
    v = Vae()

    def model(x: Tensor, *, dose: Tensor) -> None:
        v.model(x - dose)

    def guide(x: Tensor, *, dose: Tensor) -> None:
        v.guide(x - dose)

    return Foreign(model, guide, X + SHIFT, {"dose": SHIFT})


@spelling
def a_number_for_all() -> Foreign:
    """A float, a bool and a string."""
    programs = shifted(Vae(), lambda by, on, unit: by * on * (1 if unit == "one" else 9))
    return Foreign(*programs, X + 2.0, {"by": 2.0, "on": True, "unit": "one"})


@spelling
def a_tensor_of_no_dimensions() -> Foreign:
    """One number for all, as a tensor."""
    return Foreign(*shifted(Vae(), lambda by: by), X + 2.0, {"by": torch.tensor(2.0, **D)})


@spelling
def nested_fields() -> Foreign:
    """A dict of a dict and a tuple, with a number among them."""
    programs = shifted(Vae(), lambda c: c["a"]["dose"] * c["b"][0] + c["b"][1])
    fields = {"c": {"a": {"dose": SHIFT}, "b": (2.0, torch.ones(N, 1, **D))}}
    return Foreign(*programs, X + 2 * SHIFT + 1, fields)


@spelling
def packed_sequences() -> Foreign:
    """Sequences of several lengths, whose sums are the shifts."""
    rows = [torch.randn(2 + i % 3, 1, generator=_random, **D) for i in range(N)]

    def total(seqs: Any) -> Tensor:
        padded, _ = pad_packed_sequence(seqs, batch_first=True)
        return padded.sum(1)

    shifts = torch.stack([row.sum(0) for row in rows])
    packed = pack_sequence(rows, enforce_sorted=False)
    return Foreign(*shifted(Vae(), lambda seqs: total(seqs)), X + shifts, {"seqs": packed})


@spelling
def fields_named_like_options() -> Foreign:
    """``seed`` by rows, ``batch_size`` as a number."""
    programs = shifted(Vae(), lambda seed, batch_size: seed * batch_size)
    return Foreign(*programs, X + 3 * SHIFT, {"fields": {"seed": SHIFT, "batch_size": 3}})


@spelling
def an_object_for_all() -> Foreign:
    """What argparse gives."""

    class Namespace:
        by = 1.5

    return Foreign(*shifted(Vae(), lambda args: args.by), X + 1.5, {"args": Namespace()})


# ---- x


WORDS, LENGTH = 7, 4
TOKENS = torch.randint(0, WORDS, (N, LENGTH), generator=_random)


@spelling
def tokens() -> Foreign:
    """Whole numbers that an Embedding looks up, and a Categorical observes."""
    embedding, encoder = nn.Embedding(WORDS, 3), nn.Linear(3, 2)
    decoder = nn.Linear(2, LENGTH * WORDS)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = decoder(z).unflatten(-1, (LENGTH, WORDS))
            pyro.sample("x", dist.Categorical(logits=logits).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        pyro.module("embedding", embedding)
        with pyro.plate("data", len(x)):
            mean = encoder(embedding(x).mean(-2))
            pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))

    return Foreign(model, guide, TOKENS, plain=True)


COUNTS = dist.Multinomial(30, probs=torch.tensor([0.2, 0.3, 0.1, 0.4])).sample((N,))
COUNTS[:5, :] = torch.tensor([1.0, 0.0, 2.0, 0.0])


@spelling
def support_of_the_batch() -> Foreign:
    """``total_count`` is the longest document's."""
    beta = nn.Linear(2, 4)

    def model(docs: Tensor) -> None:
        pyro.module("beta", beta)
        with pyro.plate("documents", len(docs)):
            z = pyro.sample("z", dist.Normal(docs.new_zeros(2), 1.0).to_event(1))
            law = dist.Multinomial(int(docs.sum(-1).max()), beta(z).softmax(-1))
            pyro.sample("w", law, obs=docs)

    def guide(docs: Tensor) -> None:
        with pyro.plate("documents", len(docs)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.2).to_event(1))

    return Foreign(model, guide, COUNTS, plain=True)


@spelling
def library_size() -> Foreign:
    """x is a condition of its own law."""
    decoder = nn.Linear(2, 4)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            rate = x.sum(-1, keepdim=True) * decoder(z).softmax(-1) + 1e-3
            pyro.sample("x", dist.Poisson(rate).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(2), 1.2).to_event(1))

    return Foreign(model, guide, COUNTS, plain=True)


@spelling
def conditional_vae() -> Foreign:
    """x is the condition, y what is observed."""
    v = Vae()

    def model(xs: Tensor, ys: Tensor | None = None) -> None:
        pyro.module("vae", v)
        with pyro.plate("data"):
            zs = pyro.sample("z", v.prior().expand([len(xs)]))
            pyro.sample("y", dist.Normal(zs @ v.w + v.b + xs, SIGMA).to_event(1), obs=ys)

    def guide(xs: Tensor, ys: Tensor | None = None) -> None:
        with pyro.plate("data"):
            pyro.sample("z", v.posterior(ys - xs))

    return Foreign(model, guide, SHIFT.expand(N, PIXELS), {"ys": X + SHIFT}, log_px=exact())


SEEN = torch.rand(N, PIXELS, generator=_random) < 0.7
SEEN[:, 0] = True


def of_seen() -> Tensor:
    """log p of the pixels that are seen."""
    found = []
    for row, seen in zip(X, SEEN, strict=True):
        w = W[:, seen]
        covariance = w.T @ w + SIGMA**2 * torch.eye(int(seen.sum()), **D)
        law = dist.MultivariateNormal(torch.zeros(len(covariance), **D), covariance)
        found.append(law.log_prob(row[seen]))
    return torch.stack(found)


@spelling
def missing_marked_by_nan() -> Foreign:
    """``NanMaskedNormal``, which is made for it."""
    v = Vae()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", v.prior())
            pyro.sample("x", dist.NanMaskedNormal(z @ v.w + v.b, SIGMA).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", v.posterior(x.nan_to_num(0.0)))

    return Foreign(model, guide, X.where(SEEN, torch.nan), log_px=of_seen())


@spelling
def missing_by_a_mask_of_nan() -> Foreign:
    """NaN, and a mask that the program makes of it."""
    v = Vae()

    def model(x: Tensor) -> None:
        seen = ~x.isnan()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", v.prior())
            law = dist.Normal(z @ v.w + v.b, SIGMA).mask(seen).to_event(1)
            pyro.sample("x", law, obs=x.nan_to_num(0.0))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", v.posterior(x.nan_to_num(0.0)))

    return Foreign(model, guide, X.where(SEEN, torch.nan), log_px=of_seen())


@spelling
def missing_marked_by_a_value() -> Foreign:
    """A mask, and −1 where a Bernoulli sees nothing."""
    decoder = nn.Linear(2, PIXELS)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            law = dist.Bernoulli(logits=decoder(z), validate_args=False)
            pyro.sample("x", law.mask(x >= 0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.2).to_event(1))

    return Foreign(model, guide, (X > 0).float().where(SEEN, -1.0), plain=True)


@spelling
def an_imputed_observation() -> Foreign:
    """``obs_mask=``: Pyro samples what is not seen."""
    v = Vae()

    def model(x: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", v.prior())
            pyro.sample("x", v.decode(z), obs=x, obs_mask=seen)

    def guide(x: Tensor, seen: Tensor) -> None:
        mean = v.encoder(x).where(seen[:, None], Z)
        spread = COVARIANCE.where(seen[:, None, None], torch.eye(CODES, **D))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MultivariateNormal(mean, spread))
            with poutine.mask(mask=~seen):  # as Pyro asks for
                pyro.sample("x_unobserved", v.decode(z))

    seen = torch.arange(N) % 2 == 0
    return Foreign(
        model, guide, fields={"seen": seen}, log_px=exact().where(seen, torch.zeros((), **D))
    )


# ---- scales, factors and other sites


@spelling
def weight_of_an_image() -> Foreign:
    """``poutine.scale`` with a tensor."""
    v = Vae()

    def program(call: Any) -> Any:
        def weighted(x: Tensor, weight: Tensor) -> None:
            with poutine.scale(scale=weight):
                call(x)

        return weighted

    fields = {"weight": torch.linspace(0.5, 1.5, N, **D)}
    return Foreign(program(v.model), program(v.guide), fields=fields, refused="one weight an image")


@spelling
def annealing() -> Foreign:
    """A weight of the KL in the programs, as a field of one number."""
    v = Vae()

    def model(x: Tensor, beta: float = 1.0) -> None:
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", v.prior())
            pyro.sample("x", v.decode(z), obs=x)

    def guide(x: Tensor, beta: float = 1.0) -> None:
        with pyro.plate("data", len(x)), poutine.scale(scale=beta):
            pyro.sample("z", v.posterior(x))

    return Foreign(model, guide, fields={"beta": 0.5}, refused="is scaled by 0.5")


@spelling
def a_factor_of_the_model() -> Foreign:
    """A penalty in the plate: the number has it in its name."""
    v = Vae()

    def model(x: Tensor) -> None:
        v.model(x)
        with pyro.plate("data_", len(x)):
            pyro.factor("penalty", -(x**2).sum(-1))

    return Foreign(model, v.guide, log_px=exact() - (X**2).sum(-1))


@spelling
def a_factor_of_the_guide() -> Foreign:
    """A classification loss as scANVI's: it trains, and is no density of z."""
    v = Vae()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", v.posterior(x))
            loss = (v.encoder(x) ** 2).sum(-1)
            pyro.factor("penalty", -0.3 * loss, has_rsample=False)

    return Foreign(v.model, guide)


@spelling
def what_both_observe() -> Foreign:
    """A regression in the guide of what the model observes too, as CEVAE's."""
    v = Vae()
    regression = nn.Linear(PIXELS, 1, **D)

    def model(x: Tensor, t: Tensor) -> None:
        with pyro.plate("data", len(x), subsample=x):
            z = pyro.sample("z", v.prior())
            pyro.sample("x", v.decode(z), obs=x)
            pyro.sample("t", dist.Bernoulli(logits=torch.zeros((), **D)), obs=t)

    def guide(x: Tensor, t: Tensor) -> None:
        with pyro.plate("data", len(x), subsample=x):
            law = dist.Bernoulli(logits=regression(x).squeeze(-1))
            pyro.sample("t", law, obs=t, infer={"is_auxiliary": True})
            pyro.sample("z", v.posterior(x))

    t = (torch.arange(N) % 2).double()
    return Foreign(
        model, guide, fields={"t": t}, log_px=exact() - torch.log(torch.tensor(2.0, **D))
    )


@spelling
def an_auxiliary_site_of_the_guide() -> Foreign:
    """Drawn by the guide alone."""
    v = Vae()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            law = dist.Normal(v.encoder(x), 0.1).to_event(1)
            u = pyro.sample("u", law, infer={"is_auxiliary": True})
            pyro.sample("z", dist.MultivariateNormal(u, COVARIANCE))

    return Foreign(v.model, guide, refused="'u' is auxiliary")


@spelling
def deterministic_sites() -> Foreign:
    """Kept for the trace alone."""
    v = Vae()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", v.prior())
            mean = pyro.deterministic("mean", z @ v.w + v.b, event_dim=1)
            pyro.sample("x", dist.Normal(mean, SIGMA).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.deterministic("code", v.encoder(x), event_dim=1)
            pyro.sample("z", v.posterior(x))

    return Foreign(model, guide)


@spelling
def other_words_for_a_law() -> Foreign:
    """``expand``, a transformed law, and numbers of one dimension."""
    v = Vae()

    def model(x: Tensor) -> None:
        options = {"dtype": x.dtype, "device": x.device}
        with pyro.plate("data", x.size(0)):
            noise = dist.Normal(torch.zeros((), **options), 1.0).expand([x.size(0), CODES])
            z = pyro.sample("z", noise.to_event(1))
            unit = dist.Normal(torch.zeros(PIXELS, **options), 1.0).to_event(1)
            move = dist.transforms.AffineTransform(z @ v.w + v.b, SIGMA, event_dim=1)
            pyro.sample("x", dist.TransformedDistribution(unit, [move]), obs=x)

    return Foreign(model, v.guide)


@spelling
def reparameterised_by_a_handler() -> Foreign:
    """``poutine.reparam``: the latent has another name, and the old one is deterministic."""
    v = Vae()

    def plain(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            law = dist.Normal(Z + 1.0, 2.0 * torch.ones(CODES, **D)).to_event(1)
            z = pyro.sample("z", law)
            pyro.sample("x", v.decode((z - 1.0) / 2.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z_decentered", v.posterior(x))

    reparam = pyro.infer.reparam.LocScaleReparam(centered=0.0, shape_params=())
    return Foreign(poutine.reparam(plain, config={"z": reparam}), guide)


@spelling
def observed_in_parts() -> Foreign:
    """One site a pixel, in a loop."""
    v = Vae()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            mean = pyro.sample("z", v.prior()) @ v.w + v.b
            for pixel in pyro.markov(range(PIXELS)):
                pyro.sample(f"x_{pixel}", dist.Normal(mean[..., pixel], SIGMA), obs=x[:, pixel])

    return Foreign(model, v.guide)


@spelling
def latents_one_by_one() -> Foreign:
    """One site a latent, each given those before it."""
    v = Vae()
    law = dist.MultivariateNormal(Z, COVARIANCE)
    slope = law.covariance_matrix[1, 0] / law.covariance_matrix[0, 0]
    rest = (law.covariance_matrix[1, 1] - slope * law.covariance_matrix[1, 0]).sqrt()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = [pyro.sample(f"z{i}", dist.Normal(torch.zeros((), **D), 1.0)) for i in range(CODES)]
            pyro.sample("x", v.decode(torch.stack(z, -1)), obs=x)

    def guide(x: Tensor) -> None:
        mean = v.encoder(x)
        with pyro.plate("data", len(x)):
            z0 = pyro.sample("z0", dist.Normal(mean[:, 0], law.covariance_matrix[0, 0].sqrt()))
            pyro.sample("z1", dist.Normal(mean[:, 1] + slope * (z0 - mean[:, 0]), rest))

    return Foreign(model, guide)


# ---- latents of the whole set


@spelling
def weights_of_the_whole_set() -> Foreign:
    """A Bayesian decoder: its weights are latents."""
    v = Vae()

    def model(x: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(torch.zeros(PIXELS, **D), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", v.prior())
            pyro.sample("x", dist.Normal(z @ v.w + b, SIGMA).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(PIXELS, **D))
        pyro.sample("b", dist.Normal(loc, 0.2).to_event(1))
        v.guide(x)

    return Foreign(model, guide, refused="'b': a latent shared by all images")


@spelling
def topics_in_a_plate() -> Foreign:
    """Latents in a plate of their own, the data plate of the whole set's size."""
    v = Vae()

    def model(x: Tensor) -> None:
        with pyro.plate("topics", PIXELS):
            b = pyro.sample("b", dist.Normal(torch.zeros((), **D), 1.0))
        with pyro.plate("data", 5 * N, subsample_size=len(x)):
            z = pyro.sample("z", v.prior())
            pyro.sample("x", dist.Normal(z @ v.w + b, SIGMA).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("topics", PIXELS):
            pyro.sample("b", dist.Normal(pyro.param("loc", torch.zeros(PIXELS, **D)), 0.2))
        with pyro.plate("data", 5 * N, subsample_size=len(x)):
            pyro.sample("z", v.posterior(x))

    return Foreign(model, guide, refused="'b': a latent shared by all images")


@spelling
def straight_through_classes() -> Foreign:
    """One-hot in the model, its straight-through relaxation in the guide."""
    places, encoder = torch.randn(4, PIXELS, generator=_random, **D), nn.Linear(PIXELS, 4, **D)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(logits=torch.zeros(4, **D)))
            pyro.sample("x", dist.Normal(c @ places, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            temperature = torch.tensor(0.7, **D)
            law = dist.RelaxedOneHotCategoricalStraightThrough(temperature, logits=encoder(x))
            pyro.sample("c", law)

    return Foreign(model, guide, refused="a mass, in the model and .* a density, in the guide")


@contextmanager
def nothing() -> Iterator[None]:
    """A context that does nothing."""
    yield


@spelling
def programs_that_ask_for_their_mode() -> Foreign:
    """``self.training``, and a context that is entered or not."""

    class Moody(Vae):
        def model(self, x: Tensor) -> Any:
            with poutine.mask(mask=True) if self.training else nothing():
                return super().model(x)

    v = Moody()
    return Foreign(v.model, v.guide)
