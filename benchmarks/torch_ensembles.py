"""A program that trains and times ensembles in PyTorch on request.

    python torch_ensembles.py FILE.npz

The file has the networks' initial parameters by our names, `backbone/conv0/kernel` [P, h, w, C, F]
and so on, and batches x [N, B, H, W, C] or [N, B, D] with labels y [N, B]. A request is one line of
JSON, {"method", "network", "threads", "steps", "losses"}, where the network is what
`device/torch_side.py: Network` takes; the answer has the wall and CPU seconds of `steps` steps or,
with `losses`, the losses [steps, P] from the initial parameters.

  loop                 networks in a loop, each with its own fused Adam
  loop, channels last  the same with images and kernels in the channels-last memory format
  vmap                 torch.func.vmap over stacked parameters, one fused Adam

The networks are functions of dicts of tensors, without the work of modules. The ResNets' norms keep
no running averages in training, so do slightly less work than ours.
"""

import json
import os
import sys
import time

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import torch
import torch.nn.functional as F
from device.torch_side import Network


class Ensemble:
    def __init__(self, file: str, method: str, network: dict):
        arrays, last = dict(np.load(file)), method.endswith("channels last")
        self.network = Network(**network)
        self.y = torch.from_numpy(arrays.pop("y")).long()
        images = self.network.images(arrays.pop("x"), last)
        self.x = [self.network.laid_out(x, last) for x in images]
        stacked, self.vmapped = self.network.parameters(arrays, last), method == "vmap"
        if self.vmapped:
            self.members = [stacked]
        else:
            size = len(next(iter(stacked.values())))
            self.members = [
                {n: self.network.laid_out(a[p].clone(), last) for n, a in stacked.items()}
                for p in range(size)
            ]
        self.members = [
            {n: a.requires_grad_() for n, a in params.items()} for params in self.members
        ]
        self.adams = [torch.optim.Adam(p.values(), 1e-3, fused=True) for p in self.members]
        one = torch.func.grad_and_value(self.loss)
        self.gradients = torch.func.vmap(one, in_dims=(0, None, None))
        self.next = 0

    def loss(self, params: dict, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.network(params, x), y)

    def step(self) -> list[torch.Tensor]:
        x, y = self.x[self.next], self.y[self.next]
        self.next = (self.next + 1) % len(self.x)
        losses = []
        for params, adam in zip(self.members, self.adams, strict=True):
            if self.vmapped:
                gradients, loss = self.gradients(params, x, y)
                for name, parameter in params.items():
                    parameter.grad = gradients[name]
            else:
                adam.zero_grad()
                loss = self.loss(params, x, y)
                loss.backward()
            adam.step()
            losses.append(loss.detach())
        return losses


def main(file: str) -> None:
    ensembles: dict[str, Ensemble] = {}
    for line in sys.stdin:
        request = json.loads(line)
        method, network = request["method"], request["network"]
        torch.set_num_threads(request["threads"])
        if request["losses"]:
            fresh = Ensemble(file, method, network)
            losses = [torch.hstack(fresh.step()).tolist() for _ in range(request["steps"])]
            answer = {"losses": losses, "version": torch.__version__}
        else:
            if method not in ensembles:
                ensembles[method] = Ensemble(file, method, network)
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(request["steps"]):
                ensembles[method].step()
            answer = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
