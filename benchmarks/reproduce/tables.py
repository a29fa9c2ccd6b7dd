"""The tables and figures that are reproduced: their cells, the published values with tolerances,
and what is read off them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyro_vae.errors import UserError, did_you_mean

CONFIGS = Path(__file__).resolve().parent / "configs"


@dataclass(frozen=True)
class Published:
    """log p(x) of the test set in nats per image, and how far from it a replication may lie to
    either side.
    """

    value: float
    tolerance: float
    active_units: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One line of a table: the cell ``configs/CELL.toml`` under the name that the paper gives it."""

    name: str
    cell: str
    published: Published | None = None
    em_iterations: int = 0  # instead of the cell's own training: a Gaussian mixture by EM

    @property
    def config(self) -> Path:
        """Its options."""
        return CONFIGS / f"{self.cell}.toml"


@dataclass(frozen=True)
class Picture:
    """Pages of `pyro-vae plot`, one column a cell, or a figure of this folder's own (``draw`` names
    a function of figures).
    """

    name: str
    cells: tuple[str, ...] = ()
    pages: tuple[str, ...] = ()
    draw: str = ""


@dataclass(frozen=True)
class Table:
    """``better`` names pairs of rows of which the paper has the first above the second."""

    name: str
    title: str
    source: str
    rows: tuple[Row, ...]
    better: tuple[tuple[str, str], ...] = ()
    pictures: tuple[Picture, ...] = ()
    units: bool = False  # count active units
    ais_images: int = 0  # annealed importance sampling beside, of so many images
    note: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """Each once, in order."""
        return tuple(dict.fromkeys(row.cell for row in self.rows))


# ------------------------------------------------------------------------------------------
# IWAE, Table 1


AT_ONE, AT_FIVE, AT_FIFTY = 1.0, 0.4, 0.3
"""Nats: replications of the k = 1 cell lie a nat apart, those of k = 50 a few tenths."""

_IWAE = {  # by layers: k, −log p(x) of the VAE and of the IWAE, tolerance
    1: ((1, 86.76, 86.76, AT_ONE), (5, 86.47, 85.54, AT_FIVE), (50, 86.35, 84.78, AT_FIFTY)),
    2: ((1, 85.33, 85.33, AT_ONE), (5, 85.01, 83.89, AT_FIVE), (50, 84.78, 82.90, AT_FIFTY)),
}
_UNITS = {
    ("VAE", 1): 19,
    ("VAE", 5): 20,
    ("VAE", 50): 20,
    ("IWAE", 1): 19,
    ("IWAE", 5): 22,
    ("IWAE", 50): 25,
}


def _iwae_row(model: str, layers: int, k: int, nll: float, tolerance: float) -> Row:
    """With k = 1 VAE and IWAE are one cell."""
    units = _UNITS[model, k] if layers == 1 else None
    cell = f"burda-l{layers}-k1" if k == 1 else f"burda-l{layers}-{model.lower()}-k{k}"
    return Row(_iwae_name(model, layers, k), cell, Published(-nll, tolerance, units))


def _iwae_name(model: str, layers: int, k: int) -> str:
    return f"{model}, k = {k}, {layers} layer{'s' if layers > 1 else ''}"


def _iwae_order() -> tuple[tuple[str, str], ...]:
    """IWAE-50 over IWAE-5 over the VAE, and two layers over one."""
    pairs = []
    for layers in (1, 2):
        steps = (
            (("IWAE", 50), ("IWAE", 5)),
            (("IWAE", 5), ("VAE", 1)),
            (("IWAE", 5), ("VAE", 5)),
            (("IWAE", 50), ("VAE", 50)),
        )
        pairs += [(_iwae_name(a, layers, j), _iwae_name(b, layers, k)) for (a, j), (b, k) in steps]
    for model, k in (("VAE", 1), ("VAE", 5), ("VAE", 50), ("IWAE", 5), ("IWAE", 50)):
        pairs.append((_iwae_name(model, 2, k), _iwae_name(model, 1, k)))
    return tuple(pairs)


IWAE = Table(
    name="iwae",
    title="MNIST, dynamic binarization: VAE and IWAE, one and two stochastic layers, K = 5000",
    source="Burda, Grosse & Salakhutdinov 2016, Table 1",
    rows=tuple(
        _iwae_row(model, layers, k, nll, tolerance)
        for layers, lines in _IWAE.items()
        for index, model in enumerate(("VAE", "IWAE"))
        for k, *nlls, tolerance in lines
        for nll in (nlls[index],)
    ),
    better=_iwae_order(),
    units=True,
    note=(
        "VAE k is Trace_ELBO(num_particles=k): the authors' code averages the k log weights, the "
        "KL sampled too (TraceMeanField_ELBO: the same expectation, the KL in closed form). "
        "Active units: Var_x(E_q[u]) > 0.01 of the test set, theirs of 500 training images."
    ),
)

# ------------------------------------------------------------------------------------------
# AEVB, Figures 2 to 4

_AEVB = "Kingma & Welling 2014"
MNIST_LATENTS, FREY_LATENTS = (3, 5, 10, 20, 200), (2, 5, 10, 20)
FIGURE_3_SIZES, FIGURE_3_MILLIONS = (1000, 50_000), (1, 3, 10, 30, 60)

AEVB_2 = Table(
    name="aevb-figure2",
    title="The lower bound against the number of training samples evaluated",
    source=f"{_AEVB}, Figure 2",
    rows=(
        *(Row(f"MNIST, {z} latents", f"aevb-mnist-z{z}") for z in MNIST_LATENTS),
        *(Row(f"Frey faces, {z} latents", f"aevb-frey-z{z}") for z in FREY_LATENTS),
    ),
    pictures=(Picture("aevb-figure2", draw="lower_bounds"),),
    note="A figure, no table: about −100 nats on MNIST at 20 latents; superfluous latents do not overfit.",
)

AEVB_3 = Table(
    name="aevb-figure3",
    title="The marginal likelihood of test images, three latents: IW-5000, and AIS of the same images",
    source=f"{_AEVB}, Figure 3",
    rows=tuple(
        Row(f"{n} images, {millions} million samples", f"aevb-n{n}-{millions}m")
        for n in FIGURE_3_SIZES
        for millions in FIGURE_3_MILLIONS
    ),
    pictures=(Picture("aevb-figure3", draw="marginal_likelihoods"),),
    ais_images=500,
    note="A figure, no table. The paper's estimator (its appendix D) is biased high; these are lower bounds.",
)

AEVB_4 = Table(
    name="aevb-figure4",
    title="The learned manifolds of two latents, a grid through the inverse Gaussian CDF",
    source=f"{_AEVB}, Figure 4",
    rows=(Row("Frey faces", "aevb-frey-z2"), Row("MNIST", "aevb-mnist-z2")),
    pictures=(Picture("aevb-figure4", ("aevb-frey-z2", "aevb-mnist-z2"), ("manifold",)),),
)

# ------------------------------------------------------------------------------------------
# Priors and flows

VAMP = Table(
    name="vampprior",
    title="MNIST: the standard prior and VampPrior-500, K = 5000; dynamic, and static where its files are",
    source="Tomczak & Welling 2018, Table 1",
    rows=(
        Row("standard", "vamp-standard"),
        Row("VampPrior", "vamp-vampprior"),
        Row("standard, static", "vamp-standard-static"),
        Row(
            "VampPrior, static",
            "vamp-vampprior-static",
            Published(-85.57, 0.5, note="Pythae's replication: -85.79"),
        ),
    ),
    better=(("VampPrior", "standard"), ("VampPrior, static", "standard, static")),
    units=True,
    note="The paper's values of dynamic MNIST were not at hand: nothing is judged there, the difference is the result.",
)

_STATIC = "published of static MNIST, K = 128"

FLOWS = Table(
    name="flows",
    title="Mean-field and IAF: dynamic MNIST, and static MNIST where its files are",
    source="Altosaar's variational-autoencoder, README",
    rows=(
        Row("mean-field", "altosaar-mean-field"),
        Row("IAF", "altosaar-iaf"),
        Row(
            "mean-field, static", "altosaar-mean-field-static", Published(-97.10, 0.5, note=_STATIC)
        ),
        Row("IAF, static", "altosaar-iaf-static", Published(-95.33, 0.5, note=_STATIC)),
    ),
    better=(("IAF", "mean-field"), ("IAF, static", "mean-field, static")),
    units=True,
    note="Of dynamic MNIST nothing is published for this architecture: the pair's difference is the result.",
)

# ------------------------------------------------------------------------------------------
# The study texts


TEXTS = Table(
    name="texts",
    title="The study texts' own exhibits",
    source="the study texts",
    rows=(
        Row("Gaussian decoder, 2-D", "texts-gaussian-2d"),
        Row("VAE, 2-D", "texts-vae-2d"),
        Row("AE, 2-D", "texts-ae-2d"),
        Row("denoising", "texts-denoising"),
        Row("convolutional, 3×32×32, MNIST in colour", "texts-conv-colour"),
        Row("convolutional, 3×32×32, CIFAR-10", "texts-conv-cifar10"),
        Row("GMM by SVI", "texts-gmm"),
        Row("GMM by EM", "texts-gmm", em_iterations=100),
        Row("Gaussian VAE", "texts-gaussian-vae"),
    ),
    better=(("Gaussian VAE", "GMM by EM"),),
    pictures=(
        Picture("texts-gaussian-2d", ("texts-gaussian-2d",), ("manifold", "latent")),
        Picture("texts-ae-and-vae", ("texts-ae-2d", "texts-vae-2d"), ("latent", "manifold")),
        Picture("texts-denoising", ("texts-denoising",), ("denoising",)),
        Picture("texts-conv", ("texts-conv-colour",), ("reconstructions", "samples")),
        Picture("texts-gmm", ("texts-gmm", "texts-gaussian-vae"), ("samples",)),
    ),
)

TABLES: dict[str, Table] = {
    each.name: each for each in (IWAE, AEVB_2, AEVB_3, AEVB_4, VAMP, FLOWS, TEXTS)
}


def chosen(names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The tables that are asked for with the cells to run of each; a cell's name stands for it in
    every table that has it.

    Raises:
        UserError: a name of neither.
    """
    cells = {cell for table in TABLES.values() for cell in table.cells}
    for name in names:
        if name not in TABLES and name not in cells:
            raise UserError(did_you_mean("table or cell", name, [*TABLES, *sorted(cells)]))
    wanted = {
        name: table.cells
        if not names or name in names
        else tuple(cell for cell in table.cells if cell in names)
        for name, table in TABLES.items()
    }
    return {name: found for name, found in wanted.items() if found}
