"""The convolutional VAE on colour images, from a file to log p(x), as a user runs it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli.entry import main


@pytest.fixture
def colour_images(tmp_path: Path) -> Path:
    """60 images 3×32×32, 8 bits: a bright square on a coloured ground, and noise."""
    random = np.random.default_rng(0)
    ground = random.integers(0, 128, (60, 3, 1, 1))
    images = (ground + random.integers(0, 32, (60, 3, 32, 32))).astype(np.uint8)
    for image, corner in zip(images, random.integers(0, 20, (60, 2)), strict=True):
        image[:, corner[0] : corner[0] + 12, corner[1] : corner[1] + 12] += 90
    path = tmp_path / "colour.npz"
    np.savez(path, images=images)
    return path


@pytest.mark.slow
def test_the_conv_net_is_trained_sampled_and_evaluated(
    colour_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = [
        "--data",
        str(colour_images),
        "--net",
        "Conv",
        "--likelihood",
        "Gaussian(scale=learned)",
        "--latent-dim",
        "8",
    ]
    sizes = [
        "--steps",
        "30",
        "--batch-size",
        "16",
        "--num-samples",
        "20",
        "--valid-fraction",
        "0.2",
        "--quiet",
        "--json",
        "--no-pictures",  # their posterior chains cost ten times the training
    ]
    assert main(["train", *options, *sizes, "--out", str(run)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["protocol"]["kind"] == "density" and result["protocol"]["num_dims"] == 3 * 32 * 32
    assert result["elbo"] <= result["mean"] + 4 * result["se_mc"]
    # dequantized: bits/dim = −log p(x) / (D log 2) + 8
    assert result["bits_per_dim"] == pytest.approx(8 - result["mean"] / (3072 * np.log(2)))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train"]["elbo"] > rows[0]["train"]["elbo"]
    assert main(["plot", str(run), "reconstructions"]) == 0
    assert (run / "reconstructions.png").read_bytes().startswith(b"\x89PNG")
    assert main(["sample", str(run), "--number", "4", "--out", str(tmp_path / "samples.png")]) == 0
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    model, guide = pv.load(run)
    x = torch.rand(5, 3, 32, 32)
    assert pv.encode(model, guide, x)["z"].shape == (5, 8)
    assert pv.reconstruct(model, guide, x)["x"].shape == x.shape


def test_the_default_widths_are_32_to_512() -> None:
    from pyro_vae.nn import Conv

    widths = [
        layer.out_channels
        for layer in Conv((3, 32, 32), (10,)).layers
        if isinstance(layer, torch.nn.Conv2d)
    ]
    assert widths == [32, 64, 128, 256, 512]
