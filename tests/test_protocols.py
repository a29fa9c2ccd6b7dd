"""What parts may have beside their program, how they are constructed, and what ``net=`` takes."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_vae import fit, guides, models
from pyro_vae.choices import lookup, registry
from pyro_vae.data.transforms import OBSERVES
from pyro_vae.errors import UserError
from pyro_vae.nn import MLP, Net
from pyro_vae.protocols import DEFAULTS, Conditional, DataStart, Guide, Local, Part, hook

ROOT = Path(__file__).parents[1]
SHAPE, LATENTS = (1, 4, 4), 3
SLOTS = ("model", "prior", "likelihood", "guide")
PARTS = [(slot, name) for slot in SLOTS for name in lookup.members(slot)]


# ---- the hooks


def test_every_hook_has_a_sentence() -> None:
    """In the protocol's own source: what it is of, and what it says."""
    tree = ast.parse((ROOT / "pyro_vae/protocols.py").read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert [each.name for each in classes] == ["Part", "Conditional", "Guide", "Local", "DataStart"]
    for each in classes:
        assert ast.get_docstring(each)
        for node, after in zip(each.body, [*each.body[1:], None], strict=True):
            if isinstance(node, ast.FunctionDef):
                assert ast.get_docstring(node), node.name
            elif isinstance(node, ast.AnnAssign):
                assert isinstance(after, ast.Expr), ast.unparse(node)


def test_a_hook_is_read_in_one_place() -> None:
    """No ``getattr`` by a hook's name but in the reader, and so no default but that of the list."""
    names = {*DEFAULTS, "local", "build", "waits_for_data", "start_from_data"}
    folders = (ROOT / folder for folder in ("pyro_vae", "models", "guides"))
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                "getattr",
                "hasattr",
            ):
                named = node.args[1]
                assert not (isinstance(named, ast.Constant) and named.value in names), path


def test_what_says_nothing_has_the_defaults() -> None:
    assert {name: hook(lambda x: None, name) for name in DEFAULTS} == dict(DEFAULTS)
    assert set(DEFAULTS) == {n for each in (Part, Conditional, Guide) for n in vars(each)} & set(
        DEFAULTS
    )


def built(slot: str, name: str, **given: Any) -> Any:
    """A part as the registry builds it for tiny images."""
    context: dict[str, Any] = {"event_shape": SHAPE, "latent_dim": LATENTS, "levels": 4}
    context |= {"num_data": 8, "num_classes": 2, "prior": "StandardNormal"}
    context |= {"likelihood": "Bernoulli", "hidden": (5,)}
    if "encoder" in inspect.signature(lookup.resolve(slot, name)).parameters:
        context["encoder"] = guides.MeanField(SHAPE, LATENTS, hidden=(5,))
    if slot == "guide":
        kind = {"ExactPosterior": "LinearGaussian", "BottomUp": "Hierarchical"}
        kind["TopDown"] = "Hierarchical"
        context["model"] = built("model", kind.get(name, "GenerativeModel"))
    return registry.build(slot, name, **context, **given)


@pytest.mark.parametrize(("slot", "name"), PARTS)
def test_a_part_has_what_its_protocol_asks(slot: str, name: str) -> None:
    part = built(slot, name)
    assert hook(part, "slot") == slot
    assert isinstance(part, Local) == isinstance(part, guides.AmortizedGuide)
    if isinstance(part, Local) and name not in ("PerDatum", "ClassConditional"):
        eta = part.local(torch.rand(2, *SHAPE).round())
        assert eta.shape[0] == 2 and part.build(eta).batch_shape == (2,)
    starts = isinstance(part, DataStart)
    own = ("model", "GaussianMixture"), ("prior", "VampPrior"), ("model", "SemiSupervised")
    assert starts == (slot == "likelihood" or (slot, name) in own)
    if slot == "likelihood":
        assert hook(part, "kind") in ("mass", "density")
        assert hook(part, "observes") in OBSERVES
        assert hook(part, "latent_dim") == LATENTS and hook(part, "per_pixel") >= 1


def test_a_program_of_ones_own_is_read_by_the_same_hooks() -> None:
    """A module with two methods starts from the data; nothing is inherited for it."""

    class Model(models.GenerativeModel):
        pure = True
        waits_for_data = True

        def start_from_data(self, data: Any) -> None:
            self.seen, self.waits_for_data = data.mean.shape, False

    model = Model(models.StandardNormal(2), models.Bernoulli(SHAPE, 2, hidden=(4,)))
    guide = guides.MeanField(SHAPE, 2, hidden=(4,))
    assert isinstance(model, DataStart)
    fit(model, guide, torch.rand(8, *SHAPE).round(), num_steps=1, batch_size=8, progress=False)
    assert model.seen == SHAPE and not model.waits_for_data


# ---- constructors


def rank(name: str) -> int:
    """The place of an argument: an image's shape, z's size, what the part is made of, its own
    settings, its network.
    """
    made_of = ("prior", "likelihood", "model", "encoder", "guide")
    order = {"event_shape": 0, "latent_dim": 1, **dict.fromkeys(made_of, 2), "net": 4}
    return order.get(name, 3)


@pytest.mark.parametrize(("slot", "name"), PARTS)
def test_constructors_have_one_order(slot: str, name: str) -> None:
    """Those by position in the order of `rank`, those by name alone as well; the network's own
    arguments last.
    """
    parameters = list(inspect.signature(lookup.resolve(slot, name)).parameters.values())
    for kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
        ranks = [rank(p.name) for p in parameters if p.kind is kind]
        assert ranks == sorted(ranks), f"{name}{inspect.signature(lookup.resolve(slot, name))}"


@pytest.mark.parametrize("name", lookup.members("likelihood"))
def test_a_likelihood_takes_its_two_sizes_in_either_order(name: str) -> None:
    """By their names, in the order of all parts, and in the one that older scripts have."""
    kind = lookup.resolve("likelihood", name)
    one, other, named = (
        kind(SHAPE, LATENTS, hidden=(5,)),
        kind(LATENTS, SHAPE, hidden=(5,)),
        kind(latent_dim=LATENTS, event_shape=SHAPE, hidden=(5,)),
    )
    for part in (one, other, named):
        assert (part.latent_dim, part.event_shape) == (LATENTS, SHAPE)
        assert part(torch.zeros(2, LATENTS)).event_shape == SHAPE
    with pytest.raises(UserError, match="latent_dim"):
        kind(SHAPE, 0)


# ---- net=


TAKERS = [
    (slot, name)
    for slot, name in PARTS
    if "net" in inspect.signature(lookup.resolve(slot, name)).parameters
]
"""The parts whose constructor has a net."""


def first_net(part: nn.Module) -> Net:
    """The network that the part asked for: of a hierarchy that next to the image."""
    return next(module for module in part.modules() if isinstance(module, Net))


class Own(nn.Module):
    """A network without this package's classes: rows to rows."""

    def __init__(self, in_shape: torch.Size, out_shape: torch.Size) -> None:
        super().__init__()
        layer = nn.Linear(in_shape.numel(), out_shape.numel())
        self.layers = nn.Sequential(nn.Flatten(), layer, nn.Unflatten(1, tuple(out_shape)))

    def forward(self, rows: Tensor) -> Tensor:
        return self.layers(rows)


SPELLINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "name": lambda: {"net": "MLP", "hidden": (5,)},
    "call": lambda: {"net": "MLP(hidden=(5,))"},
    "class": lambda: {"net": MLP, "hidden": (5,)},
}


def direct(slot: str, name: str, **net: Any) -> nn.Module:
    """The part by its class, with what the registry would fill in."""
    torch.manual_seed(0)
    kind = lookup.resolve(slot, name)
    dims = {"prior": models.StandardNormal(2), "latent_dims": (4, 2)}
    known: dict[str, Any] = {"event_shape": SHAPE, "latent_dim": LATENTS, "num_classes": 2}
    known |= {"model": built("model", "GenerativeModel")}
    if name in ("Hierarchical", "BottomUp", "TopDown"):
        likelihood = models.Bernoulli(SHAPE, 4, hidden=(5,))
        known |= {**dims, "likelihood": likelihood}
        known["model"] = models.Hierarchical(**dims, likelihood=likelihood, hidden=(5,))
    names = inspect.signature(kind).parameters
    return kind(**{k: v for k, v in known.items() if k in names}, **net)


@pytest.mark.parametrize(("slot", "name"), TAKERS)
def test_net_is_a_name_a_call_or_a_class(slot: str, name: str) -> None:
    """Three spellings of one network: the same parameters, bit for bit, by the class and by the
    registry.
    """
    parts = [direct(slot, name, **spelling()) for spelling in SPELLINGS.values()]
    for other in parts[1:]:
        found, expected = other.state_dict(), parts[0].state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    for net in ("MLP", "MLP(hidden=(5,))", MLP):
        part = registry.build(
            slot, name, event_shape=SHAPE, latent_dim=LATENTS, num_classes=2,
            prior="StandardNormal",
            likelihood="Bernoulli", model=built("model", "Hierarchical"), net=net,
        )  # fmt: skip
        assert first_net(part).layers[0].out_features == (5 if net == "MLP(hidden=(5,))" else 500)


@pytest.mark.parametrize("own", [True, False], ids=["module", "Net"])
@pytest.mark.parametrize(("slot", "name"), TAKERS)
def test_net_is_a_module_that_is_ready(slot: str, name: str, own: bool) -> None:
    """Its very parameters are the part's; its arguments, and another shape, are refused."""
    hierarchy = name == "Hierarchical"  # it gives its net to the likelihood that is built by name
    build = partial(built if hierarchy else direct, slot, name)
    asked = first_net(build())  # what the part wants of a network
    kind: Any = Own if own else MLP
    net = kind(asked.in_shape, asked.out_shape)
    part = build(net=net)
    ids = {id(p) for p in part.parameters()}
    assert ids >= {id(p) for p in net.parameters()}
    found = first_net(part)(torch.rand(2, 3, *first_net(part).in_shape))
    assert found.shape == (2, 3, *first_net(part).out_shape)
    if not hierarchy:
        with pytest.raises(UserError, match=r"ready|unknown argument.*hidden"):
            build(net=kind(asked.in_shape, asked.out_shape), hidden=(3,))
    wrong = kind(asked.in_shape, torch.Size([7]))
    with pytest.raises(UserError, match=r"\(7,\)|, 7\)"):
        first_net(build(net=wrong))(torch.rand(2, *asked.in_shape))


@pytest.mark.parametrize("net", [nn.Linear, 3, "Cov", "MLP(5)", "MLP(hidden=(5,))"])
def test_what_is_no_network_is_a_sentence(net: Any) -> None:
    with pytest.raises(UserError, match=r"net|Conv|hidden") as refusal:
        models.Bernoulli(SHAPE, 2, net=net, **({"hidden": 3} if "hidden" in str(net) else {}))
    assert len(str(refusal.value).splitlines()) == 1


def test_a_class_conditional_guide_gives_its_network_to_the_guide_inside() -> None:
    """However the inner guide is named; a misspelt argument of the network is refused."""
    for spec in ("", "FullRank, ", "FullRank(), "):
        for net in ("hidden=(5,)", "net=MLP(hidden=(5,))"):
            part = registry.build(
                "guide", f"ClassConditional({spec}{net})",
                event_shape=SHAPE, latent_dim=2, num_classes=2,
                net="MLP(hidden=(7,))",
            )  # fmt: skip
            assert part.guide.net.layers[0].out_features == 5, (spec, net)
    with pytest.raises(UserError, match="hiden"):
        guides.ClassConditional(event_shape=SHAPE, latent_dim=2, hiden=(3,))
