"""A VAE trained by stock Pyro: parts and an objective of pyro_vae, SVI, and log p(x) at the end.

python examples/train.py --steps 2000 --device cuda
"""

import argparse

import pyro
import torch

import pyro_vae as pv
from pyro_vae import guides, models, objectives
from pyro_vae.data import datasets

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--device", default="cpu", help="cpu or cuda")
args = parser.parse_args()

pyro.set_rng_seed(0)
pyro.clear_param_store()

# 8×8 digits with 17 grey levels: (N, 1, 8, 8). A grey level is the probability that a pixel is 1.
digits = datasets.load("digits")
grey_train, grey_test = (part.to(args.device) / 16 for part in (digits.train, digits.test))
x_test = torch.bernoulli(grey_test)  # drawn once: log p(x) is of these very images

# p(z) p(x | z) and q(z | x): Pyro programs, so change a word, or write your own
latent_dim, shape = 8, digits.event_shape
likelihood = models.Bernoulli(shape, latent_dim, hidden=(200,))
model = models.GenerativeModel(models.StandardNormal(latent_dim), likelihood).to(args.device)
guide = guides.MeanField(shape, latent_dim, hidden=(200,)).to(args.device)

objective = objectives.IWAE(5)  # any of pyro_vae.objectives, or Pyro's own
svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss=objective)

step, total, seen = 0, 0.0, 0
while step < args.steps:
    for rows in torch.randperm(len(grey_train), device=args.device).split(args.batch_size):
        x = torch.bernoulli(grey_train[rows])  # binarized afresh at each visit
        total, seen, step = total + svi.step(x), seen + len(x), step + 1
        if step % 500 == 0 or step == args.steps:
            print(f"step {step}: loss {total / seen:.2f} nats an image")
            total, seen = 0.0, 0
        if step == args.steps:
            break

print(pv.log_marginal(model, guide, x_test, num_samples=1000, device=args.device))
