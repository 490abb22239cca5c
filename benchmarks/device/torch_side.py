"""The opponents in PyTorch, on request; needs torch and numpy alone.

A request is one line of JSON with `do`:

  make     builds and warms up the side `name` of a `kind`, from the arrays of `file`, with what the
           side `like` has compiled: its answer has `compile_seconds` (the first call), `megabytes`
           (the peak on a GPU), and the `losses` [compare, P] from the initial parameters
  time     seconds of `steps` steps of that side, until the device is done
  drop     forgets all sides

An error is answered as {"error": ...}; standard output has answers alone.

The networks are functions of dicts of tensors, so a step has no work beyond PyTorch's own. ResNets
run on images and kernels that are flipped in height and width: XLA's padding 'SAME' of a strided
convolution is then PyTorch's `padding=1`, and no copy is needed for equal numbers.
"""

import itertools
import json
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DEPTHS = {8: 1, 20: 3}  # blocks in each of three stages


def synchronise():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def set_precision(precision):
    low = precision != "float32"
    torch.set_float32_matmul_precision("high" if low else "highest")
    torch.backends.cudnn.allow_tf32 = low
    torch.backends.cudnn.benchmark = True


def autocast(precision):
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bfloat16")


class Network:
    """Logits of the parameters of one member, by our names: `backbone/dense0/kernel`, ...

    `depth` is that of a ResNet, `paddings` those of LeNet5's convolutions, `heads` a ViT's.
    """

    def __init__(self, name, depth=20, paddings=(2, 0, 0), heads=2):
        self.name, self.depth, self.paddings, self.heads = name, depth, paddings, heads

    def parameters(self, arrays, last):
        """Ours [P, ...] in PyTorch's layout: kernels [P, F, C, h, w] and [P, K, D]."""
        out = {}
        for name, a in arrays.items():
            if name.endswith("kernel"):
                a = a.transpose(0, 4, 3, 1, 2) if a.ndim == 5 else a.transpose(0, 2, 1)
                if a.ndim == 5 and self.name == "resnet":
                    a = a[..., ::-1, ::-1]
                if self.name == "lenet" and "dense0" in name:  # [H, W, C] in ours, here [C, H, W]
                    side = round((a.shape[-1] // 120) ** 0.5)
                    a = np.moveaxis(a.reshape(*a.shape[:2], side, side, 120), -1, 2)
                    a = a.reshape(*a.shape[:2], -1)
            out[name] = torch.from_numpy(np.ascontiguousarray(a)).to(DEVICE)
        for name in [name for name in out if "/query/" in name]:  # one product for all three
            parts = [out.pop(name.replace("query", part)) for part in ("query", "key", "value")]
            out[name.replace("query", "qkv")] = torch.cat(parts, 1)
        return out

    def images(self, x, last):
        """[..., B, D] or [..., B, H, W, C] -> [..., B, C, H, W]."""
        if x.ndim < 4:
            return torch.from_numpy(x).to(DEVICE)
        x = np.moveaxis(x, -1, -3)
        if self.name == "resnet":
            x = x[..., ::-1, ::-1]
        x = torch.from_numpy(np.ascontiguousarray(x)).to(DEVICE)
        return self.laid_out(x, last)

    def laid_out(self, x, last):
        return x.contiguous(memory_format=torch.channels_last) if last and x.ndim == 4 else x

    def __call__(self, p, x, train=True, dropout=0.0):
        def drop(x):
            return F.dropout(x, dropout) if dropout else x

        x = getattr(self, self.name)(p, x, train, drop)
        return F.linear(x.float(), p["head/logits/kernel"], p["head/logits/bias"])

    def mlp(self, p, x, train, drop):
        for i in itertools.count():
            if f"backbone/dense{i}/kernel" not in p:
                return x
            layer = f"backbone/dense{i}"
            x = drop(F.relu(F.linear(x, p[f"{layer}/kernel"], p[f"{layer}/bias"])))

    def lenet(self, p, x, train, drop):
        for i, padding in enumerate(self.paddings):
            layer = f"backbone/conv{i}"
            x = F.conv2d(x, p[f"{layer}/kernel"], p[f"{layer}/bias"], padding=padding)
            x = drop(F.relu(F.max_pool2d(x, 2) if i < 2 else x))
        x = F.linear(x.flatten(1), p["backbone/dense0/kernel"], p["backbone/dense0/bias"])
        return drop(F.relu(x))

    def resnet(self, p, x, train, drop):
        def norm(x, layer):
            # Running averages are not kept in training, which is a little less work than ours has.
            mean = var = None
            if not train:
                mean, var = p[f"{layer}/mean"], p[f"{layer}/var"]
            return F.batch_norm(x, mean, var, p[f"{layer}/scale"], p[f"{layer}/bias"], train, 0.1)

        def conv(x, layer, stride, padding):
            return F.conv2d(x, p[f"{layer}/kernel"], None, stride, padding)

        x = drop(F.relu(norm(conv(x, "backbone/stem/conv", 1, 1), "backbone/stem/norm")))
        for stage in (1, 2, 3):
            for i in range(DEPTHS[self.depth]):
                layer, stride = f"backbone/stage{stage}/block{i}", 2 if stage > 1 and i == 0 else 1
                y = conv(x, f"{layer}/conv0", stride, 1)
                y = drop(F.relu(norm(y, f"{layer}/norm0")))
                y = norm(conv(y, f"{layer}/conv1", 1, 1), f"{layer}/norm1")
                if f"{layer}/shortcut/kernel" in p:
                    # Flipped images: the pixels 0, 2, ... of ours are 1, 3, ... from the other end.
                    x = x[:, :, 1::2, 1::2] if stride == 2 else x
                    x = drop(norm(conv(x, f"{layer}/shortcut", 1, 0), f"{layer}/shortcut_norm"))
                x = F.relu(x + y)
        return x.mean((2, 3))

    def vit(self, p, x, train, drop):
        def dense(x, layer):
            return F.linear(x, p[f"{layer}/kernel"], p[f"{layer}/bias"])

        def norm(x, layer):
            return F.layer_norm(x, x.shape[-1:], p[f"{layer}/scale"], p[f"{layer}/bias"], 1e-6)

        kernel = p["backbone/embedding/kernel"]
        x = F.conv2d(x, kernel, p["backbone/embedding/bias"], kernel.shape[-1])
        x = x.flatten(2).transpose(1, 2)  # [B, T, D]
        B, _, D = x.shape
        x = torch.cat([p["backbone/class_token"].expand(B, 1, D), x], 1)
        x = drop(x + p["backbone/position_embedding"])
        for i in itertools.count():
            block = f"backbone/block{i:02}"
            if f"{block}/norm0/scale" not in p:
                break
            qkv = dense(norm(x, f"{block}/norm0"), f"{block}/attention/qkv")
            q, k, v = qkv.view(B, -1, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, -1, D)
            x = x + drop(dense(y, f"{block}/attention/out"))
            y = dense(norm(x, f"{block}/norm1"), f"{block}/feed_forward/dense0")
            y = dense(drop(F.gelu(y, approximate="tanh")), f"{block}/feed_forward/dense1")
            x = x + drop(y)
        return norm(x, "backbone/norm")[:, 0]


class Stepped:
    """What steps over batches share: initial values, a captured graph, memory and time."""

    def capture(self):
        """Records a step as a CUDA graph; a step then replays it on the next batch."""
        if DEVICE.type != "cuda":
            raise RuntimeError("a CUDA graph needs a GPU")
        self.x, self.y = self.batches[0][0].clone(), self.batches[0][1].clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.body(self.x, self.y)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        for parameter in self.trained:
            parameter.grad = None
        with torch.cuda.graph(self.graph):
            self.captured = self.body(self.x, self.y)

    def reset(self):
        """Back to the initial parameters, in place, so that a graph stays valid."""
        with torch.no_grad():
            for parameter, start in zip(self.trained, self.starts, strict=True):
                parameter.copy_(start)
            for state in self.adam.state.values():
                for value in state.values():
                    value.zero_()
        self.done = 0

    def step(self):
        x, y = self.batches[self.done % len(self.batches)]
        self.done += 1
        if self.graph is None:
            return self.body(x, y)
        self.x.copy_(x)
        self.y.copy_(y)
        self.graph.replay()
        return self.captured

    def losses(self, steps):
        self.reset()
        return [self.step().detach().cpu().tolist() for _ in range(steps)]


class Ensemble(Stepped):
    """Independent networks, one fused Adam over all parameters.

    Methods, joined by commas: 'loop' (a backward pass for each member) or 'vmap' (torch.func over
    stacked parameters); 'channels last'; 'compile' (torch.compile of a member's loss, or of the
    mapped gradients); 'CUDA graph' (the whole step).
    """

    def __init__(self, arrays, request):
        methods = request["method"].split(", ")
        self.vmapped, last = "vmap" in methods, "channels last" in methods
        self.network = Network(request["network"], request.get("depth"))
        self.precision = request["precision"]
        x, y = arrays.pop("x"), torch.from_numpy(arrays.pop("y")).long().to(DEVICE)
        images = [self.network.laid_out(x, last) for x in self.network.images(x, last)]
        self.batches = list(zip(images, y, strict=True))
        stacked = self.network.parameters(arrays, last)
        if self.vmapped:
            self.members = [stacked]
        else:
            size = len(next(iter(stacked.values())))
            self.members = [
                {n: self.network.laid_out(a[p].clone(), last) for n, a in stacked.items()}
                for p in range(size)
            ]
        self.trained = [a.requires_grad_() for member in self.members for a in member.values()]
        self.starts = [a.detach().clone() for a in self.trained]
        cuda, adam = DEVICE.type == "cuda", request["adam"]
        self.adam = torch.optim.Adam(
            self.trained, adam["rate"], eps=adam["eps"], fused=True, capturable=cuda
        )
        gradients = torch.func.vmap(torch.func.grad_and_value(self.loss), (0, None, None))
        self.one = gradients if self.vmapped else self.loss
        if "compile" in methods:
            self.one = request.get("compiled") or torch.compile(self.one)
        self.graph, self.done = None, 0
        self.step()  # compiles
        self.step()
        if "CUDA graph" in methods:
            self.capture()

    def loss(self, params, x, y):
        with autocast(self.precision):
            return F.cross_entropy(self.network(params, x), y)

    def body(self, x, y):
        if self.vmapped:
            (params,) = self.members
            gradients, losses = self.one({n: a.detach() for n, a in params.items()}, x, y)
            for name, parameter in params.items():
                parameter.grad = gradients[name]
        else:
            self.adam.zero_grad(set_to_none=True)
            losses = []
            for params in self.members:
                loss = self.one(params, x, y)
                loss.backward()
                losses.append(loss.detach())
            losses = torch.stack(losses)
        self.adam.step()
        return losses


class SVGD(Stepped):
    """SVGD of an MLP: the particles are one matrix [P, n], the kernel is two products."""

    def __init__(self, arrays, request):
        methods = request["method"].split(", ")
        self.prior, adam = request["prior"], request["adam"]
        x = torch.from_numpy(arrays.pop("x")).to(DEVICE)
        y = torch.from_numpy(arrays.pop("y")).long().to(DEVICE)
        self.batches = list(zip(x, y, strict=True))
        self.names, self.shapes = list(arrays), [a.shape[1:] for a in arrays.values()]
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]
        P = len(next(iter(arrays.values())))
        flat = np.concatenate([a.reshape(P, -1) for a in arrays.values()], axis=1)
        self.z = torch.from_numpy(flat).to(DEVICE).requires_grad_()
        self.trained, self.starts = [self.z], [self.z.detach().clone()]
        cuda = DEVICE.type == "cuda"
        self.adam = torch.optim.Adam(
            [self.z], adam["rate"], eps=adam["eps"], fused=True, capturable=cuda
        )
        one = torch.func.vmap(torch.func.grad_and_value(self.nll), in_dims=(0, None, None))
        self.one = one
        if "compile" in methods:
            self.one = request.get("compiled") or torch.compile(one)
        self.pairs = torch.triu_indices(P, P, 1, device=DEVICE)
        self.log = 2 * float(np.log(P + 1))
        self.graph, self.done = None, 0
        self.step()
        self.step()
        if "CUDA graph" in methods:
            self.capture()

    def nll(self, z, x, y):
        parts = z.split(self.sizes)
        p = {n: a.view(s) for n, a, s in zip(self.names, parts, self.shapes, strict=True)}
        for i in itertools.count():
            if f"backbone/dense{i}/kernel" not in p:
                break
            x = F.relu(x @ p[f"backbone/dense{i}/kernel"] + p[f"backbone/dense{i}/bias"])
        return F.cross_entropy(x @ p["head/logits/kernel"] + p["head/logits/bias"], y)

    def median(self, squared):
        """Of the pairs; torch.median is the lower of the two middle ones, ours their mean."""
        ordered = squared[self.pairs[0], self.pairs[1]].sort().values
        n = len(ordered)
        return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2

    def body(self, x, y):
        z = self.z.detach()
        g, losses = self.one(z, x, y)
        g = g + z / self.prior**2
        inner = z @ z.T
        norms = inner.diagonal()
        squared = (norms[:, None] + norms - 2 * inner).clamp(min=0)
        h = self.median(squared) / self.log
        K = torch.exp(squared / (-2 * h))
        # K g - (diag(K 1) - K) z / h, with a single P x P by P x n product
        phi = torch.addmm(z * (K.sum(1, keepdim=True) / -h), K, g + z / h) / len(z)
        self.z.grad = phi
        self.adam.step()
        return losses


class Dropout:
    """The mean probabilities over masks of one network: passes in a loop, or over copies of x."""

    def __init__(self, arrays, request):
        methods = request["method"].split(", ")
        last = "channels last" in methods
        self.network = Network(request["network"], request.get("depth"))
        self.rate, self.masks, self.copies = request["rate"], request["masks"], "copies" in methods
        x = arrays.pop("x")
        self.x = self.network.laid_out(self.network.images(x[None], last)[0], last)
        stacked = self.network.parameters(arrays, last)
        self.params = {n: self.network.laid_out(a[0], last) for n, a in stacked.items()}
        self.graph = None
        with torch.no_grad():
            p = self.members()
            np.savez(request["out"], mean=p.mean(0).cpu(), variance=p.var(0).cpu())
        if "CUDA graph" in methods:
            self.capture()

    def one(self, x):
        return self.network(self.params, x, False, self.rate).softmax(-1)

    def members(self):
        if self.copies:
            x = self.x.repeat(self.masks, *[1] * (self.x.ndim - 1))
            return self.one(x).view(self.masks, len(self.x), -1)
        return torch.stack([self.one(self.x) for _ in range(self.masks)])

    def capture(self):
        if DEVICE.type != "cuda":
            raise RuntimeError("a CUDA graph needs a GPU")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            self.members().mean(0)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self.graph):
            self.captured = self.members().mean(0)

    def step(self):
        if self.graph is not None:
            self.graph.replay()
            return self.captured
        with torch.no_grad():
            return self.members().mean(0)


class Metrics:
    """Metrics of members' log-probabilities [M, B, K] that are on the device already."""

    def __init__(self, arrays, request):
        self.log_p = torch.from_numpy(np.load(request["log_p"])).to(DEVICE)
        self.y = torch.from_numpy(arrays["y"]).long().to(DEVICE)
        self.bins = request["bins"]
        self.one = self.metrics
        if "compile" in request["method"]:
            self.one = torch.compile(self.metrics)
        self.values = [float(v) for v in self.step()]

    def metrics(self, log_p, y):
        M, B, _ = log_p.shape
        p = log_p.exp()
        q = p.mean(0)
        nll = -(log_p[:, torch.arange(B, device=DEVICE), y].logsumexp(0) - np.log(M)).mean()
        confidence, prediction = q.max(-1)
        right = (prediction == y).to(q.dtype)
        index = (confidence * self.bins).long().clamp(max=self.bins - 1)
        gaps = torch.zeros(self.bins, device=DEVICE, dtype=torch.float64)
        gaps = gaps.scatter_add(0, index, (confidence - right).double())
        total = -torch.special.xlogy(q, q).sum(-1)
        expected = -(p * log_p).sum(-1).mean(0)
        mutual = (total - expected).clamp(min=0)
        return (nll, right.mean(), gaps.abs().sum() / B, total.mean(), mutual.mean())

    def step(self):
        with torch.no_grad():
            return torch.stack([v.double() for v in self.one(self.log_p, self.y)])


KINDS = {"ensemble": Ensemble, "svgd": SVGD, "dropout": Dropout, "metrics": Metrics}


def make(request, sides):
    if request.get("like") in sides:  # compiled already
        request["compiled"] = sides[request["like"]].one
    set_precision(request["precision"])
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if DEVICE.type == "cuda" else 0
    with np.load(request["file"]) as file:
        arrays = dict(file)
    began = time.perf_counter()
    side = KINDS[request["kind"]](arrays, request)
    side.precision_of_products = request["precision"]
    synchronise()
    answer = {"compile_seconds": time.perf_counter() - began, "megabytes": None}
    if DEVICE.type == "cuda":
        answer["megabytes"] = (torch.cuda.max_memory_allocated() - before) / 1e6
    if "compare" in request:
        answer["losses"] = side.losses(request["compare"])
    if isinstance(side, Metrics):
        answer["values"] = side.values
    about = {"torch": torch.__version__, "torch_cuda": torch.version.cuda}
    if DEVICE.type == "cuda":
        about |= {
            "torch_device": torch.cuda.get_device_name(),
            "cudnn": torch.backends.cudnn.version(),
        }
    return side, answer | {"about": about}


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # compilers print; nothing but answers may be among the answers
    sides = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "make":
                sides[request["name"]], answer = make(request, sides)
            elif request["do"] == "time":
                side = sides[request["name"]]
                set_precision(side.precision_of_products)
                synchronise()
                began = time.perf_counter()
                for _ in range(request["steps"]):
                    side.step()
                synchronise()
                answer = {"seconds": time.perf_counter() - began}
            else:
                sides.clear()
                if DEVICE.type == "cuda":
                    torch.cuda.empty_cache()
                answer = {}
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            answer = {"error": f"PyTorch: {type(error).__name__}: {text}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
