"""Pairs that can be trained but have no log p(x) of one image, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pyro_vae.pair.nodes import ONE_KIND, two_kinds

Nodes = Mapping[str, Any]


@dataclass(frozen=True)
class Unscored:
    """What the dry runs on many images and on one fewer showed."""

    why: str = ""  # a sentence; empty where log p(x) can be had
    shared: tuple[str, ...] = ()  # latents of the whole set
    loose: frozenset[str] = frozenset()  # sites that no plate separates by image


def unscored(model: Nodes, guide: Nodes, few: tuple[Nodes, Nodes], num_images: int) -> Unscored:
    """Why log p(x) of one image can't be had from these sites.

    Args:
        model, guide: their sites at ``num_images`` images; the guide's without what it observes.
        few: the same at one image fewer.
    """
    every = frozenset((*model, *guide))
    nodes = (*model.values(), *guide.values())
    if why := _changing(every ^ {*few[0], *few[1]}) or _cut(nodes, num_images):
        return Unscored(why, loose=every)
    for name, node in guide.items():
        own = name not in model or model[name]["is_observed"]
        if own and node["infer"].get("is_auxiliary"):
            return Unscored(
                f"the guide's site {name!r} is auxiliary (infer={{'is_auxiliary': True}}), so "
                "log q(z | x) is an integral over it, and there are no importance weights: "
                "sample only z in the guide"
            )
    shared = {
        name: None
        for sites, fewer in zip((model, guide), few, strict=True)
        for name, node in sites.items()
        if _is_shared(node, fewer[name], num_images)
    }
    if shared:
        names, of = ", ".join(map(repr, shared)), "a latent" if len(shared) == 1 else "latents"
        once = [name for name in shared if name in model and model[name]["is_observed"]]
        why = (
            f"site {once[0]!r} of the model is outside the data plate and is observed once "
            "for all images of a batch, so log p(x) of one image is not defined: sample it "
            "inside `with pyro.plate('data', x.shape[0]):`, once for each image"
            if once
            else f"{names}: {of} shared by all images, outside the data plate, so log p(x) of one "
            "image is not defined. fit can train such a pair. To score images, give each "
            "image its own latents, and make the networks' weights parameters"
        )
        return Unscored(why, shared=tuple(shared), loose=frozenset(shared))
    for name, node in model.items():
        if name in guide and (words := two_kinds(node, guide[name])):
            return Unscored(
                f"latent site {name!r} is {words}, so their ratio is not a weight: {ONE_KIND}"
            )
    return Unscored()


def _changing(names: Collection[str]) -> str:
    if not names:
        return ""
    return (
        f"the sites change with the number of images ({', '.join(sorted(names)[:3])} …), as in "
        "`for i in pyro.plate(…)`, so log p(x) of one image is not defined: use one "
        "vectorised plate, `with pyro.plate('data', x.shape[0]):`"
    )


def _cut(nodes: Iterable[Any], num_images: int) -> str:
    for frame in (frame for node in nodes for frame in node["cond_indep_stack"]):
        if frame.full_size == num_images and frame.size != num_images:
            return (
                f"plate {frame.name!r} takes {frame.size} of its {num_images} images, "
                "so the others have no log p(x). fit makes the batches: write the "
                "plate for all rows that the program gets (subsample_size=None)"
            )
    return ""


def _is_shared(node: Any, fewer: Any, num_images: int) -> bool:
    return node["fn"].shape() == fewer["fn"].shape() and all(
        not frame.vectorized or (frame.size >= 0 and frame.size != num_images)
        for frame in node["cond_indep_stack"]
    )
