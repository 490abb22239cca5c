"""SVGD by hand in PyTorch: torch.func.vmap for the gradients, matrix products for the kernel.

The particles are one matrix [P, n], of which the network's weights are views.
"""

import itertools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile


class Torch:
    """SVGD for `svgd_opponents.py`; `arrays` is the content of its file."""

    def __init__(self, arrays: dict[str, np.ndarray], bandwidth: float | None):
        self.h, self.scale = bandwidth, float(arrays["prior"])
        layers = sorted(name for name in arrays if name.endswith(".kernel"))  # logits are last
        self.names = [
            name.replace("kernel", kind) for name in layers for kind in ("kernel", "bias")
        ]
        self.shapes = [arrays[name].shape[1:] for name in self.names]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        P = len(arrays[self.names[0]])
        flat = np.concatenate([arrays[name].reshape(P, -1) for name in self.names], axis=1)
        self.z = torch.from_numpy(flat).requires_grad_()
        x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
        y = y if y.is_floating_point() else y.long()
        self.batches = itertools.cycle(list(zip(x, y, strict=True)))
        rate, eps = float(arrays["rate"]), float(arrays["eps"])
        self.adam = torch.optim.Adam([self.z], rate, eps=eps, fused=True)
        self.gradients = torch.func.vmap(torch.func.grad(self.nll), in_dims=(0, None, None))
        self.pairs = torch.triu_indices(P, P, 1)

    def nll(self, z: Any, x: Any, y: Any) -> Any:
        parts = z.split(self.sizes)
        parts = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        for W, b in zip(parts[:-2:2], parts[1:-2:2], strict=True):
            x = F.relu(x @ W + b)
        x = x @ parts[-2] + parts[-1]
        return 0.5 * F.mse_loss(x, y) if y.is_floating_point() else F.cross_entropy(x, y)

    def step(self) -> None:
        z = self.z.detach()
        g = self.gradients(z, *next(self.batches)).add_(z, alpha=self.scale**-2)
        inner = z @ z.T
        norms = inner.diagonal()
        squared = (norms[:, None] + norms - 2 * inner).clamp_(min=0)
        h = self.h
        if h is None:
            h = squared[self.pairs[0], self.pairs[1]].median() / (2 * math.log(len(z) + 1))
        K = torch.exp(squared / (-2 * h))
        # K g - (diag(K 1) - K) z / h, with a single P x P by P x n product
        phi = torch.addmm(z * (K.sum(1, keepdim=True) / -h), K, g.add_(z / h)).div_(len(z))
        self.z.grad = phi
        self.adam.step()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def particles(self) -> dict[str, np.ndarray]:
        parts = self.z.detach().split(self.sizes, dim=1)
        return {
            name: part.numpy().reshape(-1, *shape)
            for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    def memory(self) -> int:
        self.z.grad = None
        live = [self.z, *self.adam.state[self.z].values(), *next(self.batches)]
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            self.step()
        events = profiled.profiler.kineto_results.events()
        changes = [e for e in events if e.name() == "[memory]"]
        changes = [e.nbytes() for e in sorted(changes, key=lambda e: e.start_ns())]
        return sum(a.nbytes for a in live) + int(np.cumsum(changes).max())
