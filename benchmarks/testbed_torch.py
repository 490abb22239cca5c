"""A program that solves problems of the testbed in PyTorch on request, one after the other.

    python testbed_torch.py FILE.npz

The file has x [G, n, d], y [G, n], test inputs `pairs` [G, B, d], `l2` [G], the learning rate, and
the initial parameters of P networks for each problem, `dense0.kernel` [G, P, d, H] and so on. A
request is one line of JSON, {"threads", "steps", "answer"}; log q [G, P, B, K] after training is
written to the file `answer`, and the line that comes back has the wall and CPU seconds.

Each step is on all examples, by Adam with a coupled L2, all P networks at once.
"""

import json
import os
import sys
import time

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import torch
import torch.nn.functional as F

LAYERS = ("dense0", "dense1", "logits")


def logits(params: dict, x: torch.Tensor) -> torch.Tensor:
    """x [B, d] -> [P, B, K]."""
    h = x.expand(len(params["logits.bias"]), *x.shape)
    for name in LAYERS:
        h = torch.baddbmm(params[f"{name}.bias"][:, None], h, params[f"{name}.kernel"])
        h = h if name == LAYERS[-1] else F.relu(h)
    return h


def solve(arrays: dict, g: int, steps: int) -> np.ndarray:
    names = [f"{layer}.{kind}" for layer in LAYERS for kind in ("kernel", "bias")]
    params = {n: torch.from_numpy(arrays[n][g].copy()).requires_grad_() for n in names}
    x, y = torch.from_numpy(arrays["x"][g]), torch.from_numpy(arrays["y"][g]).long()
    rate, l2 = float(arrays["rate"]), float(arrays["l2"][g])
    adam = torch.optim.Adam(params.values(), rate, weight_decay=l2, fused=True)
    P = len(params["logits.bias"])
    targets = y.expand(P, -1).reshape(-1)
    for _ in range(steps):
        adam.zero_grad()
        u = logits(params, x)
        loss = P * F.cross_entropy(u.reshape(-1, u.shape[-1]), targets)  # of each network
        loss.backward()
        adam.step()
    with torch.no_grad():
        return F.log_softmax(logits(params, torch.from_numpy(arrays["pairs"][g])), -1).numpy()


def main(file: str) -> None:
    arrays = dict(np.load(file))
    for line in sys.stdin:
        request = json.loads(line)
        torch.set_num_threads(request["threads"])
        wall, cpu = time.perf_counter(), time.process_time()
        solved = [solve(arrays, g, request["steps"]) for g in range(len(arrays["x"]))]
        took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        np.savez(request["answer"], log_q=np.stack(solved))
        print(json.dumps(took), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
