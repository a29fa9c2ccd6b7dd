"""What a number is: named by what the observed sites score and what moves their densities, and held
to it by `compare`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from math import log
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import pyro_vae as pv
from pyro_vae.errors import UserError
from pyro_vae.evaluation.protocol import Quantity

N, PIXELS, CLASSES = 48, 6, 3
FAST: dict[str, Any] = {"num_samples": 2, "device": "cpu", "compile": "off"}
RANDOM = torch.Generator().manual_seed(3)
D = torch.float64
W = torch.randn(2, PIXELS, generator=RANDOM, dtype=D)
SHIFT = torch.randn(CLASSES, PIXELS, generator=RANDOM, dtype=D)
SHARES = torch.tensor([0.2, 0.5, 0.3], dtype=D)
X = torch.randn(N, PIXELS, generator=RANDOM, dtype=D)
COUNTS = torch.poisson(4 * torch.rand(N, PIXELS, generator=RANDOM, dtype=D) + 1)
CLASS = torch.randint(0, CLASSES, (N,), generator=RANDOM)
SEEN = torch.rand(N, PIXELS, generator=RANDOM) < 0.6
LEFT = (torch.arange(PIXELS) < 2).expand(N, PIXELS)
KNOWN = torch.rand(N, generator=RANDOM) < 0.5

Pair = tuple[Callable[..., None], Callable[..., None]]


def latent(loc: Any = 0.0) -> Tensor:
    draw: Tensor = pyro.sample("z", dist.Normal(loc + torch.zeros(2, dtype=D), 1.0).to_event(1))
    return draw


def guide(x: Tensor, **fields: Tensor) -> None:
    """One that does without any data: a proposal for every model here."""
    with pyro.plate("data", len(x)):
        latent()


def pixels(z: Tensor, shift: Any = 0.0) -> Any:
    return dist.Normal(z @ W + shift, 0.7)


def plain(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("pixels", pixels(latent()).to_event(1), obs=x)


def likelihood_given_y(x: Tensor, y: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", pixels(latent(), SHIFT[y]).to_event(1), obs=x)


def prior_given_y(x: Tensor, y: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", pixels(latent(SHIFT[y, :2])).to_event(1), obs=x)


def joint(x: Tensor, y: Tensor) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("label", dist.Categorical(SHARES), obs=y)
        pyro.sample("x", pixels(latent(), SHIFT[y]).to_event(1), obs=x)


def label_given_image(image: Tensor, y: Tensor) -> None:
    with pyro.plate("data", len(image)):
        pyro.sample("y", dist.Categorical(logits=image[:, :CLASSES] + latent()[..., :1]), obs=y)


def unused(x: Tensor, y: Tensor) -> None:
    plain(x)


def library_size(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        rate = x.sum(-1, keepdim=True) * (latent() @ W).softmax(-1)
        pyro.sample("x", dist.Poisson(rate).to_event(1), obs=x)


def size_as_a_field(x: Tensor, size: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(size * (latent() @ W).softmax(-1)).to_event(1), obs=x)


def observed_size(x: Tensor, size: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("size", dist.Poisson(24.0 * torch.ones(1, dtype=D)).to_event(1), obs=size)
        pyro.sample("x", dist.Poisson(size * (latent() @ W).softmax(-1)).to_event(1), obs=x)


def penalized(x: Tensor) -> None:
    plain(x)
    with pyro.plate("images", len(x)):
        pyro.factor("penalty", torch.full((len(x),), -3.0, dtype=D))


def factor_alone(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.factor("fit", -(x - latent() @ W).square().sum(-1))


def masked(x: Tensor, mask: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", pixels(latent()).mask(mask).to_event(1), obs=x)


def masked_and_filled(x: Tensor, mask: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = latent()
        with pyro.plate("pixels", PIXELS, dim=-2), poutine.mask(mask=mask.mT):
            pyro.sample("x", dist.Normal((z @ W).mT, 0.7), obs=torch.where(mask, x, 0.0).mT)


def coded(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", pixels(latent()).mask(x > 0).to_event(1), obs=x)


def partly_labelled(x: Tensor, y: Tensor, known: Tensor) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(SHARES), obs=y, obs_mask=known)
        pyro.sample("x", pixels(latent(), SHIFT[y]).to_event(1), obs=x)


def partly_labelled_guide(x: Tensor, **fields: Tensor) -> None:
    with pyro.plate("data", len(x)):
        latent()
        pyro.sample("y_unobserved", dist.Categorical(SHARES))


def nothing_scored_of_y(x: Tensor, y: Tensor) -> None:
    plain(x)
    with pyro.plate("images", len(x)), poutine.mask(mask=False):
        pyro.sample("y", dist.Categorical(SHARES), obs=y)


def accepted(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = latent()
        pyro.sample("accepted", dist.Bernoulli(logits=z[..., 0]), obs=torch.ones(len(x), dtype=D))
        pyro.sample("x", pixels(z).to_event(1), obs=x)


def two_halves(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = latent()
        pyro.sample("left", dist.Normal(z @ W[:, :3], 0.7).to_event(1), obs=x[:, :3])
        pyro.sample("right", dist.Normal(z @ W[:, 3:], 0.7).to_event(1), obs=x[:, 3:])


def doubled(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("pixels", pixels(latent()).to_event(1), obs=2 * x)


def mixture_given_y(x: Tensor, y: Tensor) -> None:
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(SHARES))
        pyro.sample("x", pixels(latent(), SHIFT[c] + SHIFT[y]).mask(x > -1).to_event(1), obs=x)


Y, SIZE = {"y": CLASS}, {"size": COUNTS.sum(-1, keepdim=True)}
CASES: dict[str, tuple[Any, Any, dict[str, Tensor], str, int | None, set[str], set[str]]] = {
    "x": (plain, X, {}, "log p(x)", 6, {"pixels"}, set()),
    "its likelihood given y": (likelihood_given_y, X, Y, "log p(x | y)", 6, {"x"}, {"y"}),
    "its prior given y": (prior_given_y, X, Y, "log p(x | y)", 6, {"x"}, {"y"}),
    "x and y": (joint, X, Y, "log p(x, y)", 7, {"x", "label"}, set()),
    "y given x": (label_given_image, X, Y, "log p(y | x)", 1, {"y"}, {"x"}),
    "y unused": (unused, X, Y, "log p(x)", 6, {"pixels"}, set()),
    "y of the guide alone": (plain, X, Y, "log p(x)", 6, {"pixels"}, set()),
    "library size of x": (library_size, COUNTS, {}, "log p(x)", 6, {"x"}, set()),
    "library size given": (size_as_a_field, COUNTS, SIZE, "log p(x | size)", 6, {"x"}, {"size"}),
    "library size observed": (
        observed_size,
        COUNTS,
        SIZE,
        "log p(x, size)",
        7,
        {"x", "size"},
        set(),
    ),
    "factor": (penalized, X, {}, "log p(x) + log factor 'penalty'", 6, {"pixels"}, set()),
    "factor alone": (factor_alone, X, {}, "log factor 'fit' given x", None, set(), {"x"}),
    "mask": (masked, X, {"mask": SEEN}, "log p(x_obs | mask)", None, {"x"}, {"mask"}),
    "mask of one shape": (masked, X, {"mask": LEFT}, "log p(x_obs | mask)", 2, {"x"}, {"mask"}),
    "mask, zeros elsewhere": (
        masked_and_filled,
        X,
        {"mask": SEEN},
        "log p(x_obs | mask)",
        None,
        {"x"},
        {"mask"},
    ),
    "mask of x": (coded, X, {}, "log p(x_obs)", None, {"x"}, set()),
    "obs_mask": (
        partly_labelled,
        X,
        {**Y, "known": KNOWN},
        "log p(x, y_obs | known)",
        None,
        {"x", "y_observed"},
        {"known"},
    ),
    "mask=False": (nothing_scored_of_y, X, Y, "log p(x)", 6, {"pixels"}, set()),
    "a constant observed": (accepted, X, {}, "log p(x, accepted)", 7, {"x", "accepted"}, set()),
    "two sites of one x": (two_halves, X, {}, "log p(x)", 6, {"left", "right"}, set()),
    "a class summed out, masked": (mixture_given_y, X, Y, "log p(x_obs | y)", None, {"x"}, {"y"}),
}


def score(model: Any, x: Any, **fields: Any) -> pv.LogMarginal:
    proposal = partly_labelled_guide if model is partly_labelled else guide
    return pv.log_marginal(model, proposal, x, **FAST, **fields)


@pytest.mark.parametrize("case", CASES)
def test_the_name_is_that_of_what_was_scored(case: str) -> None:
    model, x, fields, name, num_dims, scored, conditions = CASES[case]
    ll = score(model, x, **fields)
    assert str(ll).split(" ≥ ")[0] == ll.protocol["quantity"] == name
    assert ll.protocol["num_dims"] == num_dims
    assert (set(ll.protocol["scored"]), set(ll.protocol["conditions"])) == (scored, conditions)


# ---- the number


def test_joint_less_conditional_is_the_label_s_probability() -> None:
    """The draws are the same, so that images differ by log p(y_i) alone; a factor of exp(−3) is −3
    nats.
    """
    both, given = score(joint, X, y=CLASS), score(likelihood_given_y, X, y=CLASS)
    torch.testing.assert_close(both.log_px - given.log_px, SHARES.log()[CLASS], rtol=0, atol=1e-12)
    with_factor = score(penalized, X)
    torch.testing.assert_close(with_factor.log_px, score(plain, X).log_px - 3, rtol=0, atol=1e-12)
    assert "site 'penalty' is a pyro.factor" in " ".join(with_factor.warnings)
    assert with_factor.protocol["factors"] == ["penalty"]


def test_bits_are_those_of_the_elements_that_are_scored() -> None:
    def bits(model: Any, **fields: Any) -> tuple[float | None, float, str]:
        ll = score(model, X, bits_offset=8.0, **fields)
        return ll.bits_per_dim, ll.mean, " ".join(ll.notes)

    found, mean, _ = bits(label_given_image, **Y)
    assert found == pytest.approx(-mean / log(2) + 8)
    found, mean, _ = bits(masked, mask=LEFT)
    assert found == pytest.approx(-mean / (2 * log(2)) + 8)
    found, _, notes = bits(masked, mask=SEEN)
    assert found is None and "no bits/dim" in notes
    assert bits(penalized)[0] is None  # no code length


def test_every_estimator_names_it_so() -> None:
    def exact(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))

    class Local(nn.Module):
        def local(self, x: Tensor, **fields: Tensor) -> Tensor:
            return x.new_zeros(len(x), 4)

        def build(self, eta: Tensor) -> Any:
            return dist.Normal(eta[:, :2], eta[:, 2:].exp()).to_event(1)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.build(self.local(x)))

    options: dict[str, Any] = {"device": "cpu", "compile": "off", "y": CLASS[:7]}
    annealed = pv.ais(
        likelihood_given_y, exact, X[:7], num_steps=2, num_chains=2, num_leapfrog=1, **options
    )
    refined = pv.refine(likelihood_given_y, Local(), X[:7], num_steps=1, num_samples=2, **options)
    bounds = pv.bdmc(
        likelihood_given_y,
        exact,
        size=7,
        like=X[:7],
        num_steps=2,
        num_chains=2,
        num_leapfrog=1,
        **options,
    )
    for found in (annealed, refined, bounds):
        assert "log p(x | y)" in str(found).splitlines()[0]
        assert list(found.protocol["conditions"]) == ["y"] and list(found.protocol["scored"]) == [
            "x"
        ]
    assert (
        annealed.protocol["conditions"]
        == refined.protocol["conditions"]
        == bounds.protocol["conditions"]
    )
    with pytest.raises(UserError, match="'reference' is conditioned on 'y' of digest"):
        pv.refine(
            likelihood_given_y,
            Local(),
            X[:7],
            num_steps=1,
            num_samples=2,
            reference=annealed,
            **{**options, "y": (CLASS[:7] + 1) % 3},
        )


# ---- what is looked at


class Rows(Dataset[dict[str, Tensor]]):
    """Images and classes, one at a time."""

    def __init__(self, y: Tensor) -> None:
        self.y = y

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"x": X[row], "y": self.y[row]}


@pytest.mark.parametrize("model", [likelihood_given_y, unused, joint])
def test_a_field_that_is_constant_on_the_first_images(model: Any) -> None:
    """Sorted sets: its only other row is the last one; from a tensor, a Dataset and a DataLoader
    alike.
    """
    y = torch.zeros(N, dtype=torch.long)
    y[-1] = 2
    expected = score(model, X, **Y).protocol
    found = [
        score(model, X, y=y).protocol,
        score(model, Rows(y)).protocol,
        score(model, DataLoader(Rows(y), batch_size=5)).protocol,
    ]
    for protocol in found:
        assert (
            protocol["quantity"] == expected["quantity"]
            and protocol["num_dims"] == expected["num_dims"]
        )
        assert (protocol["scored"], protocol["conditions"]) == (
            found[0]["scored"],
            found[0]["conditions"],
        )


def test_where_no_row_differs_from_another() -> None:
    """Scored is what a site has the very values of, given what the signature names."""
    constant = torch.full((N,), 2)
    assert score(joint, X, y=constant).protocol["quantity"] == "log p(x, y)"
    assert score(likelihood_given_y, X, y=constant).protocol["quantity"] == "log p(x | y)"
    for model, name in (
        (joint, "log p(x, y)"),
        (label_given_image, "log p(y | x)"),
        (doubled, "log p(x)"),
    ):
        fields = {} if model is doubled else {"y": CLASS[:1]}
        assert score(model, X[:1], **fields).protocol["quantity"] == name


def test_the_model_is_asked_at_few_rows_for_its_name() -> None:
    """Eight, and the first one at which an argument that is constant on these varies; of values
    that the model computes the digest is of more.
    """
    sizes: list[int] = []

    def counted(x: Tensor, y: Tensor) -> None:
        sizes.append(len(x))
        likelihood_given_y(x, y)

    late = torch.where(torch.arange(N) < 20, 0, CLASS)
    for model, most in ((counted, 9), (lambda x, y: counted(2 * x, y), 32)):
        pair = pv.Pair.of(model, guide)
        with pair.active(training=False):
            pair.structure(X, {"y": late})
            scored = Quantity(pair)
            for rows in (slice(0, 30), slice(30, N)):
                scored.see((X[rows], {"y": late[rows]}))
            sizes.clear()
            said, _ = scored.told()
        assert said["quantity"] == "log p(x | y)" and max(sizes) == most
        assert sum(size > 9 for size in sizes) <= 1


def test_a_model_that_fails_on_rows_that_do_not_belong_together() -> None:
    def checked(x: Tensor, y: Tensor) -> None:
        if not torch.equal(y, CLASS[: len(y)]):
            raise ValueError("another order")
        likelihood_given_y(x, y)

    ll = pv.log_marginal(checked, guide, X[:5], y=CLASS[:5], **FAST)
    assert ll.protocol["quantity"] == "log p(x | y)"


def test_nothing_is_left_changed() -> None:
    """Random numbers, modes, BatchNorm's statistics, and the caller's tensors."""
    decoder = nn.Sequential(nn.Linear(2, PIXELS), nn.BatchNorm1d(PIXELS)).double().train()

    def model(x: Tensor, y: Tensor) -> None:
        x.mul_(0.5)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(decoder(latent().reshape(-1, 2)), 1.0).to_event(1), obs=x)

    x, y, state = X.clone(), CLASS.clone(), torch.get_rng_state()
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    first, again = (pv.log_marginal(model, guide, x, y=y, seed=4, **FAST) for _ in range(2))
    assert first.protocol["quantity"] == "log p(x)" and torch.equal(first.log_px, again.log_px)
    assert torch.equal(x, X) and torch.equal(y, CLASS) and torch.equal(state, torch.get_rng_state())
    assert decoder.training and all(
        torch.equal(value, before[name]) for name, value in decoder.state_dict().items()
    )


# ---- digests


def test_sha256_is_of_the_float32_bytes() -> None:
    x = X.float()
    ll = pv.log_marginal(lambda x: plain(x.double()), guide, x, **FAST)
    assert ll.protocol["sha256"] == hashlib.sha256(x.numpy().tobytes()).hexdigest()
    assert ll.protocol["scored"] == {"pixels": ll.protocol["sha256"]}


def test_equal_values_have_one_digest() -> None:
    """Whatever the dtype and the shape of an image; in the model's own batches."""
    x, y = X.float(), CLASS
    same = [
        score(lambda x, y: likelihood_given_y(x.flatten(1).double(), y), images, y=labels)
        for images, labels in ((x, y), (x.double(), y.int()), (x.unflatten(1, (2, 3)), y))
    ]
    for key in ("sha256", "scored", "conditions"):
        assert same[0].protocol[key] == same[1].protocol[key] == same[2].protocol[key]
    nearly = score(
        likelihood_given_y, x.double() + 1e-12, y=y
    )  # the same float32 numbers, and not the same
    assert nearly.protocol["sha256"] != same[0].protocol["sha256"]


def test_a_digest_is_of_the_whole_set() -> None:
    other = X.clone()
    other[-1, -1] += 1
    y = CLASS.clone()
    y[-1] = (y[-1] + 1) % CLASSES
    first = score(joint, X, y=CLASS).protocol
    for protocol, changed in (
        (score(joint, other, y=CLASS).protocol, "x"),
        (score(joint, X, y=y).protocol, "label"),
    ):
        assert {
            site for site in ("x", "label") if protocol["scored"][site] != first["scored"][site]
        } == {changed}


# ---- comparisons


def refused(first: pv.LogMarginal, second: pv.LogMarginal, *words: str) -> None:
    with pytest.raises(UserError) as refusal:
        pv.compare({"one": first, "other": second})
    line = str(refusal.value)
    assert "\n" not in line and "'one'" in line and "'other'" in line
    assert not [word for word in words if word not in line], line


def test_other_quantities_and_other_data_are_refused() -> None:
    y = (CLASS + 1) % CLASSES
    refused(
        score(joint, X, y=CLASS),
        score(likelihood_given_y, X, y=CLASS),
        "log p(x, y)",
        "log p(x | y)",
    )
    refused(score(penalized, X), score(plain, X), "log factor 'penalty'")
    refused(score(joint, X, y=CLASS), score(joint, X, y=y), "site 'label'", "same x and fields")
    refused(
        score(likelihood_given_y, X, y=CLASS),
        score(prior_given_y, X, y=y),
        "'y'",
        "with the same y",
    )
    refused(score(masked, X, mask=SEEN), score(masked, X, mask=LEFT), "'mask'")
    refused(score(masked, X, mask=SEEN), score(plain, X), "log p(x_obs | mask)")
    refused(score(plain, X), score(doubled, X), "site 'pixels'")
    refused(score(plain, X), score(plain, X + 1), "their images differ")
    images, other = X.clone(), X.clone()
    other[:, 3:] += 1
    refused(
        score(label_given_image, images, y=CLASS),
        score(label_given_image, other, y=CLASS),
        "images differ",
    )


def test_the_same_quantity_of_the_same_data_is_compared() -> None:
    """Whatever the sites are called and the guide receives; the column is headed by the quantity."""
    found = pv.compare(
        {
            "likelihood": score(likelihood_given_y, X, y=CLASS),
            "prior": score(prior_given_y, X, y=CLASS),
        }
    )
    assert "log p(x | y)" in str(found).splitlines()[0] and not found.notes
    assert found.protocol["quantity"] == "log p(x | y)"
    pv.compare({"one": score(plain, X), "halves": score(two_halves, X)})

    def guide_given(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            latent(0.1 * y.unsqueeze(-1))

    pv.compare(
        {
            name: pv.log_marginal(plain, guide_given, X, y=y, **FAST)
            for name, y in (("classes", CLASS), ("others", CLASS + 1))
        }
    )
    as_single = X.float()
    pv.compare(
        {
            "double": score(joint, as_single.double(), y=CLASS),
            "single": pv.log_marginal(
                lambda x, y: joint(x.double(), y), guide, as_single, y=CLASS.int().long(), **FAST
            ),
        }
    )


def of_before(ll: pv.LogMarginal, given: str = "") -> pv.LogMarginal:
    """As results were written: only what the model's signature names, and the digest of x."""
    new = ("quantity", "scored", "conditions", "factors")
    kept = {key: value for key, value in ll.protocol.items() if key not in new}
    return replace(ll, protocol={**kept, **({"given": given} if given else {})})


def test_results_of_before_are_compared_and_it_is_said() -> None:
    conditional = score(likelihood_given_y, X, y=CLASS)
    old, other = of_before(conditional, "y"), of_before(score(prior_given_y, X, y=CLASS), "y")
    assert str(old).startswith("log p(x | y) ≥")
    for pair in ({"a": old, "b": other}, {"a": old, "new": conditional}):
        found = pv.compare(pair)
        assert any(
            note.startswith("a is an old result with a digest of x alone") for note in found.notes
        )
        assert "log p(x | y)" in str(found).splitlines()[0]
    refused(old, score(joint, X, y=CLASS), "log p(x, y)")
    assert not pv.compare({"a": of_before(score(plain, X)), "b": of_before(score(plain, X))}).notes
