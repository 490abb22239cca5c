"""A program that trains and times ensembles in PyTorch on request.

    python torch_ensembles.py FILE.npz

The file has the networks' initial parameters, `conv0.weight` [P, F, C, h, w] and so on, the
paddings of the convolutions, and batches x [N, B, C, H, W] or [N, B, D] with labels y [N, B].
A request is one line of JSON, {"method", "threads", "steps", "losses"}; the answer has the wall
and CPU seconds of `steps` steps or, with `losses`, the losses [steps, P] from the initial
parameters.

  loop                networks in a loop, each with its own fused Adam
  loop channels last  the same with images and kernels in the channels-last memory format
  vmap                torch.func.vmap over stacked parameters, one fused Adam
"""

import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F


class Ensemble:
    def __init__(self, file: str, method: str):
        arrays = dict(np.load(file))
        self.paddings = [int(p) for p in arrays.pop("paddings")]
        last = method == "loop channels last"
        self.x = torch.from_numpy(arrays.pop("x"))
        self.y = torch.from_numpy(arrays.pop("y")).long()
        if last:
            self.x = [x.contiguous(memory_format=torch.channels_last) for x in self.x]
        self.vmapped = method == "vmap"
        stacked = {name: torch.from_numpy(a) for name, a in arrays.items()}
        if self.vmapped:
            self.members = [stacked]
        else:
            size = len(next(iter(stacked.values())))
            self.members = [{n: a[p].clone() for n, a in stacked.items()} for p in range(size)]
        for params in self.members:
            for name, a in params.items():
                if last and a.ndim == 4:
                    params[name] = a.contiguous(memory_format=torch.channels_last)
                params[name].requires_grad_()
        self.adams = [torch.optim.Adam(p.values(), 1e-3, fused=True) for p in self.members]
        one = torch.func.grad_and_value(self.loss)
        self.gradients = torch.func.vmap(one, in_dims=(0, None, None))
        self.next = 0

    def loss(self, params: dict, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for i, padding in enumerate(self.paddings):
            x = F.conv2d(x, params[f"conv{i}.weight"], params[f"conv{i}.bias"], padding=padding)
            x = F.relu(F.max_pool2d(x, 2) if i < 2 else x)
        x = x.flatten(1)
        for i in range(sum(name.startswith("dense") for name in params) // 2):
            x = F.relu(F.linear(x, params[f"dense{i}.weight"], params[f"dense{i}.bias"]))
        return F.cross_entropy(F.linear(x, params["logits.weight"], params["logits.bias"]), y)

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
        method = request["method"]
        torch.set_num_threads(request["threads"])
        if request["losses"]:
            fresh = Ensemble(file, method)
            losses = [torch.hstack(fresh.step()).tolist() for _ in range(request["steps"])]
            answer = {"losses": losses, "version": torch.__version__}
        else:
            if method not in ensembles:
                ensembles[method] = Ensemble(file, method)
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(request["steps"]):
                ensembles[method].step()
            answer = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
