"""A program that runs and times SNGP layers of other libraries on request.

    python gp_opponents.py probly|lightning-uq-box FILE.npz

The file has batches x [N, B, F] with labels y [N, B], the backbone's and head's parameters,
features `seen` [n, D] to fit a posterior to, and features `asked` [B, D] whose variance is
computed. A request is one line of JSON, {"job", "threads", "steps"}; the answer has wall and CPU
seconds per step or, with "values", the results of the job.

  training    a step of SGD with momentum on the MLP with spectral normalisation (bound 6) and the
              random-feature head, with the library's update of the precision in every step
  covariance  from the precision to the covariance, as the library does before prediction
  variance    the variance of the features `asked`, as in prediction, without the logits
"""

import importlib.metadata
import json
import sys
import time

import numpy as np
import torch
from torch import nn


def linear(a: dict[str, np.ndarray], name: str) -> nn.Linear:
    kernel = torch.from_numpy(a[f"{name}.kernel"].T.copy())
    layer = nn.Linear(kernel.shape[1], kernel.shape[0])
    layer.weight.data, layer.bias.data = kernel, torch.zeros(kernel.shape[0])
    return layer


def backbone(a: dict[str, np.ndarray]) -> list[nn.Module]:
    return [linear(a, "dense0"), nn.ReLU(), linear(a, "dense1"), nn.ReLU()]


class Probly:
    """`probly.method.sngp.sngp`, with its moving average of the precision."""

    def __init__(self, a: dict[str, np.ndarray]):
        from probly.method.sngp import sngp

        D, m = a["W"].shape
        logits = nn.Linear(D, a["beta"].shape[1])
        self.model = sngp(
            nn.Sequential(*backbone(a), logits), num_random_features=m, momentum=0.999
        )
        self.head = self.model[-1]
        self.head.W_L.data = torch.from_numpy(a["W"].T.copy())
        self.head.b_L.data = torch.from_numpy(a["b"])
        self.head.sngp.weight.data = torch.from_numpy(a["beta"].T.copy())

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.model(x)[0], y)

    def features(self, h: torch.Tensor) -> torch.Tensor:
        return self.head.compute_rff(h)

    def fit(self, phi: torch.Tensor) -> None:
        self.head.precision_matrix.copy_(phi.T @ phi)

    def covariance(self) -> torch.Tensor:
        self.head._refresh_covariance()
        return self.head.covariance_matrix

    def variance(self, phi: torch.Tensor) -> torch.Tensor:  # the lines of SNGPLayer.forward
        return self.head.ridge_penalty * torch.sum(phi * (phi @ self.head.covariance_matrix), -1)


class LightningUqBox:
    """`lightning_uq_box.uq_methods.SNGPClassification`, with its sum of the precision."""

    def __init__(self, a: dict[str, np.ndarray]):
        from lightning_uq_box.uq_methods import SNGPClassification

        self.model = SNGPClassification(
            nn.Sequential(*backbone(a)),
            nn.CrossEntropyLoss(),
            num_targets=a["beta"].shape[1],
            num_gp_features=0,
            num_random_features=a["W"].shape[1],
            normalize_gp_features=False,
            coeff=6.0,
        )
        self.model.rff.W, self.model.rff.b = torch.from_numpy(a["W"]), torch.from_numpy(a["b"])
        beta = self.model.beta
        beta.weight.data = torch.from_numpy(a["beta"].T.copy())
        beta.bias.data = torch.zeros_like(beta.bias)
        beta.bias.requires_grad_(False)  # the others have none

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        predicted, k = self.model(x)  # the lines of SNGPBase.training_step without its metrics
        with torch.no_grad():  # otherwise the library keeps the graph of every step of an epoch
            self.model.precision += k.t() @ k
        return self.model.loss_fn(predicted, y)

    def features(self, h: torch.Tensor) -> torch.Tensor:
        return self.model.rff(h)

    def fit(self, phi: torch.Tensor) -> None:
        self.model.precision = torch.eye(phi.shape[1]) + phi.T @ phi

    def covariance(self) -> torch.Tensor:
        self.model.recompute_covariance_matrix()
        return self.model.covariance

    def variance(self, phi: torch.Tensor) -> torch.Tensor:  # the lines of SNGPBase.predict_step
        full = phi @ ((self.model.covariance @ phi.t()) * self.model.ridge_penalty)
        return full.diag()


LIBRARIES = {"probly": Probly, "lightning-uq-box": LightningUqBox}


class Jobs:
    def __init__(self, library: str, file: str):
        self.make, self.arrays = LIBRARIES[library], dict(np.load(file))
        self.x = torch.from_numpy(self.arrays["x"])
        self.y = torch.from_numpy(self.arrays["y"]).long()
        self.restart()
        with torch.no_grad():
            self.fitted = self.make(self.arrays)
            self.fitted.fit(self.fitted.features(torch.from_numpy(self.arrays["seen"])))
            self.fitted.covariance()
            self.asked = self.fitted.features(torch.from_numpy(self.arrays["asked"]))

    def restart(self) -> None:
        self.trained, self.next = self.make(self.arrays), 0
        parameters = [p for p in self.trained.model.parameters() if p.requires_grad]
        self.sgd = torch.optim.SGD(parameters, 0.05, momentum=0.9, nesterov=True)
        self.trained.model.train()

    def training(self) -> float:
        x, y = self.x[self.next], self.y[self.next]
        self.next = (self.next + 1) % len(self.x)
        self.sgd.zero_grad()
        loss = self.trained.loss(x, y)
        loss.backward()
        self.sgd.step()
        return loss.detach()

    @torch.no_grad()
    def covariance(self) -> torch.Tensor:
        return self.fitted.covariance()

    @torch.no_grad()
    def variance(self) -> torch.Tensor:
        return self.fitted.variance(self.asked)


def main(library: str, file: str) -> None:
    jobs = Jobs(library, file)
    for line in sys.stdin:
        request = json.loads(line)
        torch.set_num_threads(request["threads"])
        job, steps = getattr(jobs, request["job"]), request["steps"]
        if request.get("values"):
            if request["job"] == "training":
                jobs.restart()
            values = [np.asarray(job()).tolist() for _ in range(steps)]
            versions = {name: importlib.metadata.version(name) for name in (library, "torch")}
            answer = {"values": values, "versions": versions}
        else:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(steps):
                job()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            answer = {"wall": wall / steps, "cpu": cpu / steps}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
