"""Networks: each maps ``(*batch, *in_shape)`` to ``(*batch, *out_shape)``, for any number of batch
dimensions.
"""

from pyro_vae.nn.conv import Conv
from pyro_vae.nn.mlp import MLP
from pyro_vae.nn.net import Net, make_decoder, make_encoder

__all__ = ["MLP", "Conv", "Net", "make_decoder", "make_encoder"]
