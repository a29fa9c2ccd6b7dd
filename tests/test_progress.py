"""A bar in a log file is a few states, the last of them whole."""

from io import StringIO

import pytest

import pyro_vae as pv
from pyro_vae import guides, models
from pyro_vae.progress import LOG, SCREEN, progress_bar
from tests.support.pairs import binary_images


class Screen(StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_training_that_is_logged_writes_its_first_and_its_last_state(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = models.GenerativeModel(
        models.StandardNormal(2), models.Bernoulli(2, (12,), hidden=(4,))
    )
    pv.fit(
        model,
        guides.MeanField((12,), 2, hidden=(4,)),
        binary_images(20),
        batch_size=5,
        num_epochs=50,
        progress=True,
        compile="off",
    )
    states = [state for state in capfd.readouterr().err.split("\r") if "/200" in state]
    assert len(states) <= 3
    assert "200/200" in states[-1] and "epoch 50, ELBO" in states[-1]


class Notebook(StringIO):
    """A stream of a Jupyter kernel, which is no terminal."""

    __module__ = "ipykernel.iostream"


@pytest.mark.parametrize(
    ("stream", "seconds"), [(Screen, SCREEN), (Notebook, SCREEN), (StringIO, LOG)]
)
def test_a_screen_is_redrawn_ten_times_a_second(
    stream: type[StringIO], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stream())
    with progress_bar(10, "step", True) as bar:
        assert bar.mininterval == seconds <= bar.maxinterval
