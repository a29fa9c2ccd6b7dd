"""What all tests share: one thread, as their tensors are small and several processes may share the machine."""

import torch

torch.set_num_threads(1)
