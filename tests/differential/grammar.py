"""Small random Pyro pairs as source text: ``generate(seed)``.

A program's text defines ``model``, ``guide``, ``x``, ``fields``, ``v`` (the module that has all
parameters), ``seen`` (the values of its ``pyro.param`` statements, when they last ran), ``dims``
(the data plate's dimension at each site), ``no_log_px`` and ``moves`` (why no log p(x) of one image
exists, how Python state moves, or ""), ``on_epoch_end``, ``alter`` (what happens between two
evaluations), ``settings`` (how it is trained and scored) and ``tags`` (what the text is made of).
"""

from __future__ import annotations

import random
from collections import defaultdict, namedtuple
from collections.abc import Collection, Sequence
from typing import Any

from tests.differential.cover import COVER, RATES

Law = namedtuple("Law", "priors guides width features num_features path", defaults=(True,))
# a latent in both programs: {p} is the guide's slice of the encoder's outputs, {z} the value,
# ``path`` is reparameterised


def _law(prior: str, guide: str, *rest: Any) -> Law:
    """A Law in one spelling; ``{1}`` is a positive number from the encoder's second output, ``{0}``
    the first one.
    """
    first, second = "{p}[..., 0]", "F.softplus({p}[..., 1])"
    return Law((f"dist.{prior}",), (f"dist.{guide.format(first, second, p='{p}')}",), *rest)


NORMALS = (
    "dist.Normal({p}[..., :2], F.softplus({p}[..., 2:]) + .3).to_event(1)",
    "dist.MultivariateNormal({p}[..., :2], scale_tril=torch.diag_embed(F.softplus({p}[..., 2:]) + "
    ".3))",
)
PRIORS = (
    "dist.Normal(x.new_zeros(2), 1.).to_event(1)", "dist.Normal(0., 1.).expand([2]).to_event(1)",
    "dist.Independent(dist.Normal(x.new_zeros(2), x.new_ones(2)), 1)", "dist.MultivariateNormal(x.new_zeros(2), torch.eye(2))",
)  # fmt: skip
SCALARS = ("dist.Normal(0., 1.)", "dist.Normal(x.new_zeros(()), 1.)", "dist.Normal(s.prior, 1.)")
# its sampler never ends where it is huge
CIRCLE = "VonMises({0}.clamp(-9., 9.), {1}.clamp(max=20.) + .7)"
ONE_HOT = "OneHotCategorical(x.new_ones(3) / 3)"
LAWS = {
    "normal": Law(PRIORS, NORMALS, 4, "{z}", 2),
    "scalar": Law(SCALARS, ("dist.Normal({p}[..., 0], F.softplus({p}[..., 1]) + .3)",), 2, "{z}.unsqueeze(-1)", 1),
    "lognormal": _law("LogNormal(0., .5)", "LogNormal({0}, {1} + .3)", 2, "{z}.log().unsqueeze(-1)", 1),
    "gamma": _law("Gamma(2., 2.)", "Gamma({0}.exp() + .5, {1} + 1.)", 2, "{z}.unsqueeze(-1)", 1),
    "beta": _law("Beta(2., 2.)", "Beta({0}.exp() + .5, {1} + 1.)", 2, "2 * {z}.unsqueeze(-1)", 1),
    "dirichlet": _law("Dirichlet(2 * x.new_ones(3))", "Dirichlet(F.softplus({p}) + 1.)", 3, "2 * {z}", 3),
    "vonmises": _law("VonMises(0., .5)", CIRCLE, 2, "torch.stack(({z}.cos(), {z}.sin()), -1)", 2, False),
    "bernoulli": _law("Bernoulli(.4)", "Bernoulli(logits={0})", 1, "2 * {z}.unsqueeze(-1)", 1, False),
    "categorical": _law("Categorical(x.new_ones(3) / 3)", "Categorical(logits={p})", 3, "torch.eye(3)[{z}.long()]", 3, False),
    "onehot": _law(ONE_HOT, "OneHotCategorical(logits={p})", 3, "2 * {z}", 3, False),
    "relaxed": _law(
        ONE_HOT, "RelaxedOneHotCategoricalStraightThrough(torch.tensor(.7), logits={p})", 3, "2 * {z}", 3
    ),
}  # fmt: skip
LATENTS = ("normal",) * 7 + ("scalar",) * 3 + tuple(LAWS) + ("vonmises",)

# a line of v's constructor, and o = (..., D) from h = (..., K)
DECODERS = {
    "linear": ("s.dec = nn.Linear({K}, {D})", "s.dec(h)"),
    "mlp": ("s.dec = nn.Sequential(nn.Linear({K}, 4), nn.Tanh(), nn.Linear(4, {D}))", "s.dec(h)"),
    "dropout": (
        "s.dec = nn.Sequential(nn.Linear({K}, 4), nn.Dropout(.3), nn.Linear(4, {D}))",
        "s.dec(h)",
    ),
    "batchnorm": (
        "s.dec = nn.Sequential(nn.Linear({K}, 4), nn.BatchNorm1d(4), nn.Linear(4, {D}))",
        "s.dec(h)",
    ),
    "einsum": ("s.W = P({D}, {K})", 'torch.einsum("bi,di->bd", h, s.W)'),
    "einsum dots": ("s.W = P({D}, {K})", 'torch.einsum("...i,di->...d", h, s.W)'),
    "einsum 3": ("s.W = P(2, {D}, {K})", 'torch.einsum("...i,kdi->...d", h, s.W)'),
    "matmul": ("s.W = P({D}, {K})", "h @ s.W.t()"),
    "elementwise": ("s.W = P({D}, {K})", "(h.unsqueeze(-1) * s.W.t()).sum(-2)"),
    "stored transposed": ("s.W = nn.Parameter(P({K}, {D}).detach().t())", "F.linear(h, s.W)"),
    "tied": ("s.b = P({D})", "h @ s.enc.weight[:{K}] + s.b"),
    "sliced": ("s.W = P({K} + 2, {D} + 1)", "h @ s.W[1 : {K} + 1, :{D}]"),
    "scalar": ("s.w, s.W = P({K}), P()", "(h * s.w).sum(-1, keepdim=True) + s.W.expand({D})"),
    "in place": (
        "s.dec, s.W = nn.Linear({K}, {D}), P({D})",
        "s.W.exp().expand(*h.shape[:-1], {D}).clone().add_(s.dec(h))",
    ),
}
FLAT = ("einsum", "batchnorm")  # these take (B, K) alone
ENCODERS = {
    "linear": "nn.Linear({I}, {O})",
    "mlp": "nn.Sequential(nn.Linear({I}, 5), nn.Tanh(), nn.Linear(5, {O}))",
    "batchnorm": "nn.Sequential(nn.Linear({I}, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, {O}))",
    "dropout": "nn.Sequential(nn.Linear({I}, 5), nn.Dropout(.3), nn.Linear(5, {O}))",
    "layernorm": "nn.Sequential(nn.Linear({I}, 5), nn.LayerNorm(5), nn.Linear(5, {O}))",
    "weight norm": "nn.utils.parametrizations.weight_norm(nn.Linear({I}, {O}))",
    "spectral norm": "nn.utils.parametrizations.spectral_norm(nn.Linear({I}, {O}))",
}


# what a program may have besides: its chance, lines of v's constructor, of the programs (``add``
# changes o) and of the callback; ``moves``: Python state moves, so that compile="graph" is no one's
# word
FEATURES: dict[str, tuple[float, dict[str, str]]] = {
    "pyro.param": (0.2, {"init": "s.b0 = torch.randn(D)", "add": 'o = o + param("b", s.b0)'}),
    "buffer": (0.1, {"init": 's.register_buffer("shift", torch.randn(D))', "add": "o = o + s.shift"}),
    "unused parameter": (0.1, {"init": "s.unused = P(2)"}),
    "deterministic site": (0.05, {"add": 'o = pyro.deterministic("o", o)'}),
    "branch on the batch's size": (0.08, {"init": "s.rare = P(D)", "add": "if len(x) < 6: o = o + s.rare"}),
    "branch on the epoch": (0.06, {
        "init": "s.rare2, s.number = P(D), 0", "add": "if s.number % 3 == 2: o = o + s.rare2",
        "epoch": "v.number = epoch if epoch < 9 else 2", "moves": "by a callback",
    }),
    "parameter of train mode": (0.08, {"init": "s.noise = P(D)", "guide": "if s.enc.training: x = x + s.noise"}),
    "noise on x": (0.05, {"guide": "if s.enc.training: x = x + .1 * torch.randn_like(x)"}),
    "gradient hook": (0.04, {"init": "[p.register_hook(lambda g: 2 * g) for p in s.enc.parameters()]"}),
    "hook after accumulation": (0.04, {
        "init": "[p.register_post_accumulate_grad_hook(lambda p: [p.grad.mul_(2)].clear()) for p in s.enc.parameters()]"
    }),
    "annealed temperature": (0.08, {
        "init": "s.temperature = 2.", "add": "o = o / s.temperature",
        "epoch": "v.temperature = max(1., 2. - .2 * epoch)", "moves": "by a callback",
    }),
    "counter": (0.05, {
        "init": "s.count = 0", "model": "if s.enc.training: s.count += 1",
        "add": "o = o * (1.5 if s.count > 30 else 1.)", "moves": "by itself",
    }),
    "moving average, an attribute": (0.05, {
        "init": "s.ema = torch.zeros(D)", "model": "if s.enc.training: s.ema = .9 * s.ema + .1 * x.mean(0)",
        "add": "if not s.enc.training: o = o + s.ema", "moves": "by itself",
    }),
    "moving average, a buffer": (0.06, {
        "init": 's.register_buffer("mean", torch.zeros(D))',
        "model": "if s.enc.training: s.mean.mul_(.9).add_(.1 * x.mean(0))",
        "add": "if not s.enc.training: o = o + s.mean",
    }),
    "dose that the first images lack": (0.12, {
        "init": "s.by_dose = nn.Linear(1, D, bias=False)", "add": "o = o + s.by_dose(dose){up}",
        "fields": "dose: (torch.arange(N) >= N // 2).double()[:, None]",
    }),
    "images depend on each other": (0.02, {"add": "o = o + 2 * x.roll(1, 0){up}", "no log p(x)": "images depend"}),
    "latent of the whole set": (0.02, {
        "model": 's.g = pyro.sample("g", dist.Normal(0., 1.))', "add": "o = o + s.g",
        "guide": 'pyro.sample("g", dist.Normal(s.enc.training * 0., .5))', "no log p(x)": "a latent of the whole set",
    }),
    "frozen": (0.05, {"init": "s.enc.requires_grad_(False)"}),
    "thawed": (0.04, {"init": "s.enc.requires_grad_(False)", "epoch": "v.enc.requires_grad_(epoch >= 3)"}),
    "frozen later": (0.04, {"epoch": "v.enc.requires_grad_(epoch < 3)"}),
}  # fmt: skip
FORMS = (
    "methods", "functions", "closure", "partial", "pyromodules", "lambda", "wrapped", "handled", "config_enumerate",
)  # fmt: skip
SCALES = {
    "both": ".5", "both, a tensor": "torch.tensor(.5)", "both, an image's own": "w", "one": "1.", "annealed": "s.beta",
    "model": ".5", "observed": None,
}  # fmt: skip
UNLIKE_ROWS = (
    "size",
    "noise on",
    "counter",
    "moving",
    "dropout",
    "batchnorm",
    "spectral",
    "depend",
    "whole set",
)

HEAD = """\
import functools
import pyro, pyro.distributions as dist, torch, torch.nn.functional as F
from pyro import poutine
from pyro.nn import PyroModule
from torch import nn
torch.manual_seed({seed})
N, D = {N}, {D}
seen = {{}}
def P(*shape):
    return nn.Parameter(.4 * torch.randn(shape))
def param(name, init, **kw):
    value = seen[name] = pyro.param(name, init, **kw)
    return value
"""


class Program:
    """One random program; what is chosen first may rule out what is chosen later."""

    def __init__(self, seed: int, without: Collection[str] = ()) -> None:
        self.seed, self.r, self.without = seed, random.Random(seed), without
        self.settings = dict(COVER[seed % len(COVER)])
        self.tags: list[str] = []
        self.lines: defaultdict[str, list[str]] = defaultdict(
            list
        )  # of v, of the programs, of the callback
        self.fields: dict[str, str] = {}
        self.no_log_px = self.moves = ""  # why there is none; how Python state moves

    def one(self, what: str, choices: Sequence[Any], plain: Any = None, share: float = 1.0) -> Any:
        """One of the choices with this chance, else the plain one; what is not plain is a tag."""
        chosen = self.r.choice(choices) if self.r.random() < share else plain
        if chosen == plain or f"{what}: {chosen}" in self.without:
            return plain
        self.tags.append(f"{what}: {chosen}")
        return chosen

    def has(self, tag: str, share: float) -> bool:
        """Whether it has this feature, with this chance."""
        self.tags += [tag] if self.r.random() < share and tag not in self.without else []
        return tag in self.tags

    def text(self) -> str:
        """The module's text."""
        self.N, self.D = self.r.choice((12, 16, 21)), self.r.choice((2, 3, 4))
        self.plates = self.one(
            "plate", ("dim -1", "dim -2", "pixels", "two", "unsized", "sequential"), "plain", 0.45
        )
        self.back = self.plates in ("dim -2", "pixels")  # the data plate at dim -2
        self.up = ".unsqueeze(-2)" if self.back else ""
        data = self.data()
        self.latents()
        form = self.one("form", FORMS if self.path else FORMS[:-1], "methods")
        self.decoder()
        self.features()
        model, guide = self.programs()
        programs = _wrap(form, model, guide, self.one("pyro.module", ("none",), "v", 0.15))
        dim, known = (
            -2 if self.back else -1,
            ", ".join(f'"{k}": {value}' for k, value in self.fields.items()),
        )
        lines = ["class V(nn.Module):", "    def __init__(s):", "        super().__init__()"]
        lines += [
            *(f"        {line}" for line in self.lines["init"]),
            *programs,
            *data,
            f"fields = {{{known}}}",
        ]
        dims = dict.fromkeys((*self.names, "y", "c"), dim) | {
            "x": -2 if self.plates == "two" else dim
        }
        lines += [
            f"dims = {dims}",
            "def on_epoch_end(epoch):",
            *(f"    {e}" for e in self.lines["epoch"] or ["pass"]),
        ]
        lines += [
            "def alter():",
            f"    {self.alter()}",
            f"no_log_px, moves = {self.no_log_px!r}, {self.moves!r}",
        ]
        lines += [f"settings = {self.how()!r}", f"tags = {tuple(self.tags)!r}"]
        return HEAD.format(seed=self.seed, N=self.N, D=self.D) + "\n".join(lines) + "\n"

    def data(self) -> list[str]:
        """x, its likelihood, its memory and dtype."""
        self.kind = self.r.choice(("bernoulli", "bernoulli", "normal", "normal", "poisson"))
        values = {"bernoulli": "(torch.rand({}) < .4)", "normal": "torch.randn({})"}
        stores = {
            "plain": ("N, D", ""),
            "transposed": ("D, N", ".t()"),
            "every other column": ("N, 2 * D", "[:, ::2]"),
        }
        shape, tail = stores[self.one("x stored", list(stores)[1:], "plain", 0.25)]
        whole = {
            "bernoulli": ("float", "long", "int", "bool"),
            "normal": ("float",),
            "poisson": ("float", "long"),
        }
        dtype = self.one("x dtype", whole[self.kind], "double", 0.2)
        if dtype != "double":
            self.lines["model"], self.lines["guide"] = ["x = x.double()"], ["x = x.double()"]
        return [
            "x = "
            f"{values.get(self.kind, 'torch.poisson(2 * torch.rand({}))').format(shape)}{tail}.{dtype}()"
        ]

    def latents(self) -> None:
        """One or two latents, and perhaps a class that is summed out."""
        number = self.r.choice((1, 1, 2))
        self.laws = [LAWS[self.one("latent", LATENTS, "normal")] for _ in range(number)]
        self.names = [f"z{i}" for i in range(number)]
        self.path = all(law.path for law in self.laws)
        self.summed = self.path and self.plates != "two" and self.has("latent: summed out", 0.12)
        self.lines["init"] += ["s.codes, s.prior = P(3, D), P()"]
        self.reversed = number > 1 and self.has("guide's order reversed", 0.15)
        self.depends = (
            number > 1
            and self.laws[1] is LAWS["scalar"]
            and self.has("depends on another latent", 0.5)
        )

    def decoder(self) -> None:
        """o = decoder(h), and the guide's a = encoder(x)."""
        width, K = sum(law.width for law in self.laws), sum(law.num_features for law in self.laws)
        self.dec = self.one(
            "decoder", [d for d in DECODERS if not self.back or d not in FLAT], "linear", 0.85
        )
        enc = self.one("encoder", list(ENCODERS), "linear", 0.5 if self.dec != "tied" else 0)
        self.condition = (
            self.one("y", ("condition", "observed"), "none", 0.2)
            if self.plates != "two"
            else "none"
        )
        inputs = self.D + (self.condition == "condition" and self.dec != "tied")
        line, self.o = (text.format(K=K, D=self.D) for text in DECODERS[self.dec])
        self.lines["init"] += [f"s.enc = {ENCODERS[enc].format(I=inputs, O=width)}", line]
        self.a = "s.enc(torch.cat((x, y), -1))" if inputs > self.D else "s.enc(x)"
        self.fields |= {"y": "torch.randn(N, 1)"} if self.condition != "none" else {}
        if self.condition == "condition":
            self.lines["init"].append("s.by_y = nn.Linear(1, D)")
            self.lines["add"].append(f"o = o + s.by_y(y){self.up}")

    def features(self) -> None:
        """What else a program has, scales and masks last."""
        for tag, (share, parts) in FEATURES.items():
            if self.has(tag, share):
                for name in ("init", "model", "guide", "add", "epoch"):
                    self.lines[name] += [parts[name].format(up=self.up)] if name in parts else []
                self.fields |= dict([parts["fields"].split(": ", 1)]) if "fields" in parts else {}
                self.moves = self.moves or parts.get("moves", "")
                self.no_log_px = self.no_log_px or parts.get("no log p(x)", "")
        self.scale = self.one("scale", list(SCALES), "none", 0.2)
        if self.scale == "annealed":
            self.lines["init"].append("s.beta = .2")
            self.lines["epoch"] += ["v.beta = min(1., .2 + .2 * epoch)"]
            self.moves = "by a callback"
        elif self.scale == "both, an image's own":
            self.fields["w"] = "torch.rand(N, 1) + .5" if self.back else "torch.rand(N) + .5"
        if self.scale not in ("none", "one", "annealed"):
            self.no_log_px = "a scale"
        masks = ("rows", "True", "elements")[: 3 if self.plates in ("pixels", "two") else 2]
        self.mask = self.one("mask", masks, "none", 0.12)
        if self.mask in ("rows", "elements"):
            columns = (
                ", D"
                if self.mask == "elements"
                else ", 1"
                if self.back or self.plates == "two"
                else ""
            )
            self.fields["known"] = f"torch.rand(N{columns}) < .7"

    def programs(self) -> tuple[list[str], list[str]]:
        """The bodies of the model and the guide, with their signature first."""
        default = ["not_given=None"] if self.has("argument with a default", 0.04) else []
        signature = ", ".join(["s", "x", *self.fields, *default])
        scale = SCALES.get(self.scale)
        dim = {
            "dim -1": ", dim=-1",
            "dim -2": ", dim=-2",
            "pixels": ", dim=-2",
            "two": ", dim=-1",
        }.get(self.plates, "")
        plate = (
            'pyro.plate("data")' if self.plates == "unsized" else f'pyro.plate("data", len(x){dim})'
        )
        sized = (
            ".expand([len(x)])" if self.plates == "unsized" else ""
        )  # for this plate expands nothing
        model = [f"def model({signature}):", *self.lines["model"], f"with {plate}:"]
        guide = [
            f"def guide({signature}):",
            *self.lines["guide"],
            f"a = {self.a}{self.up}",
            f"with {plate}:",
        ]
        draws, features, first = [], [], 0
        for name, law in zip(self.names, self.laws, strict=True):
            prior = self.r.choice(law.priors) + sized
            if self.depends and name == "z1":
                prior = f"dist.Normal(.7 * {features[0]}.sum(-1), 1.)"
            own = self.r.choice(law.guides).format(p=f"a[..., {first}:{first + law.width}]")
            scaled = "" if scale is None else f"with poutine.scale(scale={scale}): "
            model.append(f'    {scaled}{name} = pyro.sample("{name}", {prior})')
            draws.append(
                f'    {scaled if self.scale != "model" else ""}{name} = pyro.sample("{name}", '
                f"{own})"
            )
            features.append(law.features.format(z=name))
            first += law.width
        guide += draws[:: -1 if self.reversed else 1]
        if len(draws) > 1 and self.has("latent that the guide lacks", 0.05):
            guide.pop()
            self.no_log_px = "a latent that the guide lacks"
        model += [f"    h = torch.cat(({', '.join(features)},), -1)", f"    o = {self.o}"]
        model += [f"    {line}" for line in self.lines["add"]]
        if self.summed:
            law = f"dist.Categorical(torch.tensor([.5, .3, .2])){sized}"
            model += [f'    c = pyro.sample("c", {law})', "    o = o + s.codes[c]"]
        if self.condition == "observed":
            model += [
                '    pyro.sample("y", dist.Normal(h.sum(-1), 1.), '
                f"obs={'y' if self.back else 'y[..., 0]'})"
            ]
        return model + self.observed(), guide

    def observed(self) -> list[str]:
        """The observed site, in one of its spellings."""
        law = {
            "bernoulli": "dist.Bernoulli(logits={})",
            "poisson": "dist.Poisson({}.exp().clamp(max=50.))",
        }
        fn = law.get(self.kind, "dist.Normal({}, sigma)")
        body = []
        if self.kind == "normal":
            sigma = 'param("sigma", torch.tensor(.7), constraint=dist.constraints.positive)'
            body += [f"    sigma = {self.one('sigma', (sigma,), '.7', 0.3)}"]
        handlers = (
            [f"poutine.mask(mask={'True' if self.mask == 'True' else 'known'})"]
            if self.mask != "none"
            else []
        )
        handlers += ["poutine.scale(scale=.5)"] if self.scale == "observed" else []
        indent = "" if self.plates == "two" else "    "
        if self.plates == "pixels":
            handlers.append('pyro.plate("pixels", D, dim=-1)')
            body += ["    o = o.squeeze(-2)"]
        if self.plates == "two":
            body = [line[4:] for line in body]
            handlers = [
                'pyro.plate("images", len(x), dim=-2)',
                'pyro.plate("pixels", D, dim=-1)',
                *handlers,
            ]
        if handlers:
            body += [f"{indent}with {', '.join(handlers)}:"]
            indent += "    "
        if self.plates == "sequential":
            each = fn.format("o[..., i]")
            body += [
                f'{indent}for i in pyro.plate("pixels", D): pyro.sample(f"x_{{i}}", {each}, '
                "obs=x[..., i])"
            ]
        elif self.plates in ("pixels", "two"):
            body += [f'{indent}pyro.sample("x", {fn.format("o")}, obs=x)']
        elif self.one("observed", ("factor",), "sample", 0.04) == "factor":
            body += [f'{indent}pyro.factor("x", {fn.format("o")}.log_prob(x{self.up}).sum(-1))']
        else:
            event = self.r.choice(
                (f"{fn.format('o')}.to_event(1)", f"dist.Independent({fn.format('o')}, 1)")
            )
            body += [f'{indent}pyro.sample("x", {event}, obs=x{self.up})']
        return body

    def alter(self) -> str:
        """What the user does between two evaluations."""
        ways = ("replaced",) if "dose" in self.fields else ("replaced", "in place", "loaded")
        how = self.one("between evaluations", ways, "nothing", 0.5)
        own = {"linear": "v.dec.weight", "tied": "v.b"}.get(self.dec, "v.W")
        own = "v.dec[2].weight" if self.dec in ("mlp", "dropout", "batchnorm") else own
        own = "v.by_dose.weight" if "dose" in self.fields else own
        return {
            "replaced": f"{own} = nn.Parameter({own}.detach() + .5)",
            "in place": f"{own}.data.add_(.5)",
            "loaded": "v.load_state_dict({k: t * .5 for k, t in v.state_dict().items()}, assign=True)",
        }.get(how, "pass")

    def how(self) -> dict[str, Any]:
        """How it is trained and scored."""
        told = self.settings
        if not self.path or self.summed or self.scale == "model" or self.reversed:
            told["objective"] = "Trace_ELBO"
        if self.moves and told["compile"] == "graph":
            told["compile"] = "auto"
        batch = (
            self.N
            if self.one("batches", ("one",), "several", 0.2) == "one"
            else self.r.choice((6, 8))
        )
        told.update(
            batch_size=batch, num_epochs=-(-50 // -(-self.N // batch)), seed=self.r.choice((0, 1))
        )
        told["learning_rate"] = RATES[told["optimizer"].partition("(")[0]]
        told["proposal"] = self.one("proposal", ("Defensive", "prior"), "guide", 0.25)
        told["evaluate"] = self.r.choice(("auto", "auto", "off", "graph"))
        told["num_samples"] = 5000 if "dose" in self.fields else 1000
        told["kl_weight"] = self.one("kl_weight", (0.5,), 1.0, 0.1 if not self.summed else 0)
        plain = not any(
            word in tag for tag in self.tags for word in UNLIKE_ROWS
        )  # several particles are more rows
        told["num_particles"] = self.one(
            "num_particles", (3,), 1, 0.2 if plain and self.plates != "two" else 0
        )
        told["again"] = self.has("trained again", 0.15)
        return told


def _wrap(form: str, model: list[str], guide: list[str], register: str) -> list[str]:
    """The two programs in one of the forms in which users write them."""
    lines = []
    for body in (model, guide):
        name = body[0].split("(")[0][4:]
        given = body[0].split("(s, ")[1][:-2]
        code = [f"    {line}" for line in body[1:]]
        if register == "v" and form != "closure":
            code.insert(0, '    pyro.module("v", s)')
        if form in ("functions", "closure", "wrapped"):
            lines += [f"def {name}({given}):", "    s = v", *code]
        elif form == "partial":
            lines += [f"def _{name}(s, {given}):", *code]
        elif form == "pyromodules":
            head = [
                f"class {name.title()}(PyroModule):",
                "    def __init__(self, v):",
                "        super().__init__()",
            ]
            head += ["        self.v = v", f"    def forward(self, {given}):", "        s = self.v"]
            lines += head + [f"    {line}" for line in code]
        else:
            lines += [f"    def {name}(s, {given}):", *(f"    {line}" for line in code)]
    end = {
        "functions": "", "closure": "",
        "partial": "model, guide = functools.partial(_model, v), functools.partial(_guide, v)",
        "pyromodules": "model, guide = Model(v), Guide(v)",
        "lambda": "model, guide = (lambda x, **k: v.model(x, **k)), (lambda x, **k: v.guide(x, **k))",
        "handled": "model, guide = poutine.mask(v.model, mask=True), poutine.scale(v.guide, scale=1.)",
        "config_enumerate": "model, guide = v.model, pyro.infer.config_enumerate(v.guide)",
        "wrapped": "def same(f):\n    @functools.wraps(f)\n    def inner(*a, **k):\n        return f(*a, **k)\n"
        "    return inner\nmodel, guide = same(model), same(guide)",
    }.get(form, "model, guide = v.model, v.guide")  # fmt: skip
    return [*lines, "v = V().double()", *(end.split("\n") if end else [])]


def generate(seed: int, without: Collection[str] = ()) -> str:
    """The text of program number ``seed``, without what these tags name."""
    return Program(seed, without).text()
