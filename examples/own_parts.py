"""A likelihood and a guide of your own, for Python and for the command line.

pyro-vae train --likelihood "examples/own_parts.py:Laplace(b=0.2)"
pyro-vae train --guide "examples/own_parts.py:HeavyTails(df=4)"
"""

from pyro import distributions as dist
from pyro_vae.guides import AmortizedGuide

from pyro_vae.nn.conditional import Likelihood


class Laplace(Likelihood):  # p(x | z): the decoder network gives a location for each pixel
    kind, observes = "density", "real"  # a density, of real numbers

    def __init__(self, event_shape, latent_dim, b=0.1, net="MLP", **net_args):
        super().__init__(event_shape, latent_dim, 1, net, **net_args)  # 1 number a pixel
        self.b = b

    def forward(self, context=None):  # context: z
        (location,) = self.outputs(context)
        return dist.Laplace(location, self.b).to_event(len(self.event_shape))


class HeavyTails(AmortizedGuide):  # q(z | x): the encoder network gives eta
    def __init__(self, event_shape, latent_dim, df=5.0, net="MLP", **net_args):
        super().__init__(event_shape, latent_dim, 2 * latent_dim, net, **net_args)
        self.df = df

    def build(self, eta):  # eta: (B, 2 · latent_dim)
        location, log_scale = eta.chunk(2, dim=-1)
        return dist.StudentT(self.df, location, log_scale.exp()).to_event(1)
