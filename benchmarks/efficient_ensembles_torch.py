"""A program that trains and times LeNet5 ensembles of torch-uncertainty on request.

    python efficient_ensembles_torch.py FILE.npz

The file has batches x [N, B, C, H, W] and y [N, B], the `paddings` of the three convolutions, and
for each kind of ensemble `kind/layer/leaf` with layers conv0, conv1, conv2, dense0 and logits.
Kernels are [h, w, C, F] and [D, K], with a leading axis M where members have their own.

  networks        torch.nn layers, M networks in a loop, each with its own optimiser
  batch_ensemble  BatchConv2d and BatchLinear in the wrapper BatchEnsemble that repeats each batch
  packed          PackedConv2d and PackedLinear with alpha = 2

A request is one line of JSON, {"kind", "last", "threads", "steps", "losses"}, where `last` selects
the channels-last memory format. The answer has the wall and CPU seconds of `steps` steps with fused
Adam or, with `losses`, the members' mean losses [steps] from the initial parameters.
"""

import importlib.metadata
import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch_uncertainty.layers import BatchConv2d, BatchLinear, PackedConv2d, PackedLinear
from torch_uncertainty.methods import BatchEnsemble

LAYERS = ("conv0", "conv1", "conv2", "dense0", "logits")
ALPHA = 2


class LeNet(nn.Module):
    def __init__(self, make, paddings):
        super().__init__()
        for name in LAYERS:
            options = {"padding": paddings.pop(0)} if name.startswith("conv") else {}
            setattr(self, name, make(name, options))

    def forward(self, x):
        for i in range(3):
            x = getattr(self, f"conv{i}")(x)
            x = F.relu(F.max_pool2d(x, 2) if i < 2 else x)
        return self.logits(F.relu(self.dense0(x.flatten(1))))


def oriented(kernel):
    """A kernel in PyTorch's layout, [F, C, h, w] or [K, D], with its leading axes."""
    n = kernel.ndim
    lead = n - 4 if n >= 4 else n - 2
    order = [n - 1, n - 2, n - 4, n - 3] if n >= 4 else [n - 1, n - 2]
    return torch.from_numpy(np.ascontiguousarray(kernel.transpose(*range(lead), *order)))


def networks(arrays, paddings):
    def one(m):
        def make(name, options):
            kernel = oriented(arrays[f"{name}/kernel"][m])
            kind = nn.Conv2d if kernel.ndim == 4 else nn.Linear
            layer = kind(kernel.shape[1], kernel.shape[0], *kernel.shape[2:3], **options)
            layer.weight.data = kernel
            layer.bias.data = torch.from_numpy(arrays[f"{name}/bias"][m].copy())
            return layer

        return LeNet(make, list(paddings))

    return [one(m) for m in range(len(arrays["logits/bias"]))]


def batch_ensemble(arrays, paddings):
    M = len(arrays["logits/bias"])

    def make(name, options):
        kernel = oriented(arrays[f"{name}/kernel"])
        kind = BatchConv2d if kernel.ndim == 4 else BatchLinear
        shape = (kernel.shape[1], kernel.shape[0], *kernel.shape[2:3])
        layer = kind(*shape, num_estimators=M, **options)
        (layer.conv if kernel.ndim == 4 else layer.linear).weight.data = kernel
        for own, theirs in dict(fast_input="r_group", fast_output="s_group", bias="bias").items():
            parameter = getattr(layer, theirs)
            initial = torch.from_numpy(arrays[f"{name}/{own}"].copy())
            assert parameter.shape == initial.shape, (name, own)
            parameter.data = initial
        return layer

    return [BatchEnsemble(LeNet(make, list(paddings)), M, repeat_training_inputs=True)]


def packed(arrays, paddings):
    M = len(arrays["logits/bias"])

    def make(name, options):
        kernel = oriented(arrays[f"{name}/kernel"])  # [M, F, C, h, w] or [M, K, D]
        first, last = name == LAYERS[0], name == LAYERS[-1]
        features = kernel.shape[1] * (1 if last else M // ALPHA)
        before = kernel.shape[2] * (1 if first else M // ALPHA)
        options |= dict(alpha=ALPHA, num_estimators=M, first=first, last=last)
        conv = kernel.ndim == 5
        size = (kernel.shape[-1],) if conv else ()
        layer = (PackedConv2d if conv else PackedLinear)(before, features, *size, **options)
        own = layer.conv if conv else layer
        kernel = kernel.flatten(0, 1) if conv else kernel  # groups of filters
        assert own.weight.shape == kernel.shape, (name, own.weight.shape, kernel.shape)
        own.weight.data = kernel.contiguous()
        own.bias.data = torch.from_numpy(arrays[f"{name}/bias"].ravel().copy())
        return layer

    return [LeNet(make, list(paddings))]


KINDS = {f.__name__: f for f in (networks, batch_ensemble, packed)}


class Ensemble:
    def __init__(self, file, kind, last):
        arrays = dict(np.load(file))
        self.x, self.y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]).long()
        own = {name.removeprefix(f"{kind}/"): a for name, a in arrays.items() if kind in name}
        self.models = KINDS[kind](own, [int(p) for p in arrays["paddings"]])
        if last:
            self.x = [x.contiguous(memory_format=torch.channels_last) for x in self.x]
            self.models = [m.to(memory_format=torch.channels_last) for m in self.models]
        self.adams = [torch.optim.Adam(m.parameters(), 1e-3, fused=True) for m in self.models]
        self.next = 0

    def step(self):
        x, y = self.x[self.next], self.y[self.next]
        self.next = (self.next + 1) % len(self.x)
        losses = []
        for model, adam in zip(self.models, self.adams, strict=True):
            adam.zero_grad()
            logits = model(x)  # [M B, K], member-major, or [B, K]
            loss = F.cross_entropy(logits, y.repeat(len(logits) // len(y)))
            loss.backward()
            adam.step()
            losses.append(loss.detach())
        return torch.stack(losses).mean()


def main(file):
    ensembles = {}
    for line in sys.stdin:
        request = json.loads(line)
        torch.set_num_threads(request["threads"])
        key = request["kind"], request["last"]
        if request["losses"]:
            fresh = Ensemble(file, *key)
            answer = {"losses": [float(fresh.step()) for _ in range(request["steps"])]}
            for package in ("torch", "torch-uncertainty"):
                answer[package] = importlib.metadata.version(package)
        else:
            if key not in ensembles:
                ensembles[key] = Ensemble(file, *key)
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(request["steps"]):
                ensembles[key].step()
            answer = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
