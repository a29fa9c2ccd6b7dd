"""The names of the wing `data` and their homes, as in `pyro_vae/__init__.pyi`."""

from pyro_vae.data.datasets import load as load
from pyro_vae.data.image_data import ImageData as ImageData
from pyro_vae.data.transforms import Observed as Observed
from pyro_vae.data.transforms import observe as observe
