"""Programs compiled for devices that are not here, and what is said of them."""

import functools
import itertools
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.data.derived import derived
from experiments.experiment import config as config_lib
from experiments.experiment.build import setup
from experiments.planning import (
    collectives,
    estimates,
    operations,
    paper,
    programs,
    requests,
    scaling,
    search,
    slices,
    table,
    traffic,
)
from experiments.planning.requests import Request
from experiments.reports import formats
from experiments.reports.compiled import Bounds, sizes_figure
from experiments.runtime import execution, project
from uncertainty.build import ConfigError

GIB = 2**30


def counted(fn, *args):
    return operations.of_traced(jax.jit(fn).trace(*args)).flops


def zeros(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize(
    ("window", "stride", "padding", "dilation", "groups"),
    [(3, 1, "SAME", 1, 1), (3, 2, "SAME", 1, 1), (2, 2, "VALID", 1, 2), (3, 1, "SAME", 2, 1)],
)
def test_convolutions_count_the_products_that_xla_counts(window, stride, padding, dilation, groups):
    """Forward, and both gradients, whose inputs and kernels are dilated."""

    def conv(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), padding, rhs_dilation=(dilation, dilation),
            feature_group_count=groups, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    def gradient(x, w, out):
        return jax.vjp(conv, x, w)[1](out)

    x, w = zeros(2, 9, 9, 4), zeros(window, window, 4 // groups, 6)
    out = jax.eval_shape(conv, x, w)
    for fn, args in ((conv, (x, w)), (gradient, (x, w, out))):
        xla = jax.jit(fn).lower(*args).cost_analysis()["flops"]
        assert counted(fn, *args) == pytest.approx(xla, rel=1e-6)


def test_products_count_in_loops_conditions_and_on_every_device():
    w = zeros(5, 5)
    step = lambda c, _: (c @ c, None)  # noqa: E731
    once = 2 * 5**3
    assert counted(lambda a: jnp.einsum("bij,bjk->bik", a, a), zeros(4, 5, 5)) == 4 * once
    assert counted(lambda a: jax.lax.scan(step, a, length=7)[0], w) == 7 * once
    either = lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a @ a, a)  # noqa: E731
    assert counted(either, w) == 2 * once
    mesh = Mesh(np.asarray(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    spec = PartitionSpec("a")
    mapped = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=spec, out_specs=spec,
                           axis_names={"a"}, check_vma=False)  # fmt: skip
    assert counted(mapped, zeros(6, 5)) == 2 * (2 * 3 * 5 * 3)
    while_ = lambda a: jax.lax.while_loop(lambda a: a[0, 0] > 0, lambda a: a @ a, a)  # noqa: E731
    assert operations.of_traced(jax.jit(while_).trace(w)) == (once, 1)


MESH = dict(data=2, particle=2, expert=2, model=1)


@functools.cache
def mesh():
    return Mesh(np.asarray(jax.devices()[:8]).reshape(*MESH.values()), execution.AXES)


@pytest.mark.parametrize("axes", [("data",), ("expert",), ("data", "expert"), ("particle",)])
@pytest.mark.parametrize("kind", ["all-reduce", "all-gather", "all-to-all", "collective-permute"])
def test_collectives_are_found_with_their_axes_and_runs(kind, axes):
    """In a loop of three rounds, of which each has one."""
    n = math.prod(MESH[axis] for axis in axes)

    def one(x):
        if kind == "all-reduce":
            return jax.lax.psum(x, axes) / n
        if kind == "all-gather":
            return jax.lax.all_gather(x, axes, tiled=True)[:8] * 0.5
        if kind == "all-to-all":
            return jax.lax.all_to_all(x, axes, 0, 0, tiled=True)
        return jax.lax.ppermute(x, axes, [(i, (i + 1) % n) for i in range(n)])

    def loop(x):
        return jax.lax.scan(lambda c, _: (jnp.sin(one(c)), None), x, length=3)[0]

    spec = PartitionSpec(axes)
    fn = jax.shard_map(loop, mesh=mesh(), in_specs=spec, out_specs=spec, check_vma=False)
    x = jax.ShapeDtypeStruct((8 * n, 5), jnp.float32, sharding=NamedSharding(mesh(), spec))
    text = jax.jit(fn).trace(x).lower().compile().as_text()
    (found,) = collectives.summary(collectives.collectives(text, MESH))
    size = 8 * 5 * 4 * (n if kind == "all-gather" else 1)
    share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1}.get(kind, (n - 1) / n)
    assert found == dict(kind=kind, axes=list(axes), count=1, runs=3, bytes=3 * size,
                         sent=pytest.approx(3 * size * share))  # fmt: skip
    assert collectives.loops(text)[0].rounds == 3


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("expert",)),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("replica_groups=[4,2]<=[8]", ("expert",)),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", ("particle",)),
        ("replica_groups=[2,4]<=[2,2,2]T(1,0,2)", ("data", "expert")),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_1'}", ("particle",)),
        ("replica_groups=mesh['axis_0'=1,'axis_1'=8] {'axis_1'}", ("data", "particle", "expert")),
        ("replica_groups=mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}", ("data", "particle")),
        ("source_target_pairs={{0,2},{2,0},{1,3},{3,1}}", ("particle",)),
        ("replica_groups=mesh['x'=8] {'x':(1)4}", ("?",)),
        ("replica_groups={}", ("data", "particle", "expert")),
    ],
)
def test_groups_are_read_in_every_form(text, axes):
    groups = collectives.groups_of(f"%x), channel_id=1, {text}, to_apply=%add", 8)
    assert collectives.axes_of(groups, MESH) == axes


def test_an_asynchronous_collective_counts_its_result_once():
    line = (
        "%s = (bf16[2,8]{1,0}, bf16[8,8]{1,0:T(8,128)}) all-gather-start(%p), "
        "replica_groups=[2,4]<=[8], dimensions={0}"
    )
    text = f"ENTRY %main (p: bf16[2,8]) -> bf16[8,8] {{\n  {line}\n}}\n"
    (found,) = collectives.collectives(text, MESH)
    assert (found.bytes, found.size, found.axes) == (8 * 8 * 2, 4, ("particle", "expert"))


TEXT = """
%update (p0: f32[9,16,130], p1: f32[1,16,130], p2: s32[]) -> f32[9,16,130] {
  %p0 = f32[9,16,130]{2,1,0:T(8,128)} parameter(0)
  %p1 = f32[1,16,130]{2,1,0:T(8,128)} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %dus = f32[9,16,130]{2,1,0:T(8,128)} dynamic-update-slice(%p0, %p1, %p2)
}
%body (a: (s32[], f32[9,16,130])) -> (s32[], f32[9,16,130]) {
  %a = (s32[], f32[9,16,130]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%a), index=0
  %x = f32[9,16,130]{2,1,0:T(8,128)} get-tuple-element(%a), index=1
  %part = f32[1,16,130]{2,1,0:T(8,128)} dynamic-slice(%x, %i), dynamic_slice_sizes={1,16,130}
  %new = f32[9,16,130]{2,1,0:T(8,128)} fusion(%x, %part, %i), kind=kLoop, calls=%update
  ROOT %t = (s32[], f32[9,16,130]{2,1,0:T(8,128)}) tuple(%i, %new)
}
%condition (a: (s32[], f32[9,16,130])) -> pred[] {
  %a = (s32[], f32[9,16,130]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%a), index=0
  %n = s32[] constant(9)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}
ENTRY %main (x: f32[9,16,130]) -> f32[9,16,130] {
  %x = f32[9,16,130]{2,1,0:T(8,128)} parameter(0)
  %c = (f32[9,16,130]{2,1,0:T(8,128)S(1)}, f32[9,16,130]{2,1,0:T(8,128)}, u32[]) copy-start(%x)
  %d = f32[9,16,130]{2,1,0:T(8,128)S(1)} copy-done(%c)
  %e = f32[9,16,130]{2,1,0:T(8,128)} exponential(%d)
  %i = s32[] constant(0)
  %t = (s32[], f32[9,16,130]{2,1,0:T(8,128)}) tuple(%i, %e)
  %w = (s32[], f32[9,16,130]{2,1,0:T(8,128)}) while(%t), condition=%condition, body=%body
  ROOT %y = f32[9,16,130]{2,1,0:T(8,128)} get-tuple-element(%w), index=1
}
"""


def test_traffic_is_that_of_main_memory_with_tiles_slices_and_rounds():
    part = 16 * 256 * 4  # 130 is padded to two tiles of 128
    main, chip = traffic.traffic(TEXT)
    whole = 9 * part
    rounds = 9 * (2 * part) + 9 * (part + part + 4) + 9 * (4 + 4 + 1)  # slice, fusion, condition
    assert main == whole + whole + rounds  # read, written, and the loop
    assert chip == whole + whole
    assert collectives.loops(TEXT) == [("body", 9)]


def test_traffic_of_a_plain_program_is_what_xla_counts():
    fn = jax.jit(lambda a, b: jnp.sin(a @ b) + 1)
    compiled = fn.lower(zeros(64, 32), zeros(32, 128)).compile()
    main, chip = traffic.traffic(compiled.as_text())
    assert (main, chip) == (compiled.cost_analysis()["bytes accessed"], 0)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5x:4x4", "did you mean 'v5"),
        ("v5e", "no shape in chips"),
        ("v5e:4x4x4", "have 2 sides, not 3"),
        ("v4:2x2", "have 3 sides, not 2"),
        ("v5e:1x1", "the smallest is v5e:2x2"),
        ("v5p:3x2x2", "the smallest is v5p:2x2x1"),
        ("cpu:0", "a number of CPU devices"),
    ],
)
def test_a_wrong_topology_says_what_is_allowed(name, says):
    with pytest.raises(ConfigError, match=rf"topology: '{name}'.*{says}"):
        slices.parse(name, installed=False)


def plain(file, options="", **fields):
    config = config_lib.load(f"configs/{file}" + f":{options}" * bool(options), fields)
    return derived(config_lib.plain(config))


def test_data_need_not_be_there():
    config = plain("imagenet/vit.py")
    train, _, validation, _ = paper.described(config)
    assert (train.shape, len(train), train.outputs) == ((224, 224, 3), 1_268_355, 1000)
    assert len(validation) == 1_281_167 - 1_268_355
    assert train.x.base is not None and train.x.strides[0] == 0  # one example in memory
    config["data"] = dict(train=dict(name="stl10", split="train"))
    with pytest.raises(ConfigError, match=r"data.train: the shape of 'stl10' is not known"):
        paper.described(config)
    other = paper.described(config, paper.shape_of(["96", "96", "3"], 10, 0, 5_000))
    assert (other.train.shape, len(other.train)) == ((96, 96, 3), 5_000)
    for flags in (([], 3, 0, 0), (["3"], 0, 0, 10), (["3"], 2, 2, 10), (["3"], 2, 0, 0)):
        with pytest.raises(ConfigError, match=r"shape|examples"):
            paper.shape_of(*flags)


@pytest.mark.slow
def test_a_report_is_of_the_program_that_runs():
    """Its arguments and results are the arrays of a run, on each device."""
    config = plain("digits/mlp.py", "size=2", mesh=dict(particle=2, data=4))
    config["inference"]["executor"] = "vmap"
    experiment = setup(config, paper.described(config), evaluated=False)
    real = setup(config, evaluated=False)
    made = programs.program(experiment, "train")
    assert str(made.traced.jaxpr) == str(real.update.trace(real.shapes, made.batch).jaxpr)

    state, (_, batch) = real.init(), next(real.batches(0))
    on_first = lambda tree: sum(  # noqa: E731
        leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree)
    )
    said = programs.report(experiment, "train")
    assert said["memory"]["parameters"] == on_first(state.params)
    assert said["memory"]["optimiser"] == on_first(state.opt_state)
    assert said["memory"]["batch"] == on_first(real.put(batch))
    assert said["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(state.params))
    matrices = 64 * 128 + 128 * 128 + 128 * 8  # the first has no gradient of its inputs
    assert said["flops"] == 2 * config["batch_size"] * 2 * (3 * matrices - 64 * 128)
    assert {axis for each in said["collectives"] for axis in each["axes"]} == {"data"}
    shapes = programs.report(experiment, "shapes")  # without compiling
    assert shapes["memory"].items() <= said["memory"].items() and shapes["flops"] == said["flops"]
    assert shapes["state"] == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert (shapes["hosts"], shapes["shares"]) == (1, 1)


def test_a_prediction_holds_its_share_of_a_padded_batch():
    config = plain("digits/mlp.py", mesh=dict(data=8))
    config["evaluation"]["batch_size"] = 201
    experiment = setup(config, paper.described(config), evaluated=False)
    made = programs.program(experiment, "predict")
    assert programs.kinds_of(made, "predict")["batch"] == 26 * 64 * 4  # of 208 examples
    assert made.examples == 201


@pytest.mark.slow
def test_stages_are_compiled_as_they_run():
    config = plain("digits/mlp.py", "size=1", mesh=dict(data=2))
    config["head"] = dict(name="laplace.Laplace", outputs=8)
    config["stages"] = (dict(name="laplace"),)
    experiment = setup(config, paper.described(config), evaluated=False)
    assert programs.names(experiment)[2:] == ["stage 0 laplace", "stage 0 laplace finish"]
    for name in programs.names(experiment)[2:]:
        said = programs.report(experiment, name)
        assert said["memory"]["other"] >= 4 * 129**2  # the sum of the features' products
        assert said["memory"]["optimiser"] == 0


WRONG = [
    ("limit", ["--search", "--limit=0"]),
    ("timeout", ["--timeout=0"]),
    ("shape: not used", ["--shape=32,32,3", "--classes=10", "--examples=9"]),
    ("output", ["--output=FILE"]),
]


@pytest.mark.parametrize(("says", "flags"), WRONG, ids=[says for says, _ in WRONG])
def test_wrong_flags_are_refused_before_anything_is_compiled(programs, tmp_path, says, flags):
    (tmp_path / "file").touch()
    flags = [flag.replace("FILE", str(tmp_path / "file")) for flag in flags]
    config = ["--config", "configs/digits/mlp.py", "--topology", "cpu:2"]
    result = programs("compile", *config, "--output", tmp_path / "out", *flags)
    assert result.code == 2 and "Traceback" not in result.output, result.output
    assert (says if says != "output" else "File exists") in result.output
    assert "compiling" not in result.output


def test_flags_that_a_table_does_not_use_are_refused(programs, tmp_path):
    for flags, says in (
        (["--topology", "cpu:8"], "topology: not used by --table"),
        (["--config.batch_size=8"], "config.batch_size: not used by --table"),
        (["--rows", "("], "rows: '(' is no regular expression"),
    ):
        command = ["--table", "configs/accelerators.py", "--output", tmp_path, *flags]
        result = programs("compile", *command)
        assert result.code == 2 and f"error: {says}" in result.output, result.output


@pytest.mark.slow
def test_a_loop_holds_the_states_of_all_particles():
    peaks = {}
    for executor in ("vmap", "loop"):
        config = plain("digits/mlp.py", "size=10")
        config["inference"]["executor"], config["mesh"] = executor, dict(data=1)
        made = programs.report(setup(config, evaluated=False), "train")
        peaks[executor] = made["memory"]["peak"]
        assert made["calls"] == (10 if executor == "loop" else 1)
        state = sum(made["memory"][kind] for kind in ("parameters", "optimiser", "other"))
        assert made["memory"]["arguments"] >= state
    assert peaks["loop"] < peaks["vmap"]  # activations of one particle


@pytest.mark.slow
def test_a_request_is_compiled_once_in_a_process_of_its_own(tmp_path):
    config = plain("digits/mlp.py", "size=1")
    request = Request(config, "cpu:4", "predict")
    late = requests.compiled(request, tmp_path, timeout=0.2)
    assert late["failed"] == "timeout" and not list(tmp_path.glob("*"))
    made = requests.compiled(request, tmp_path, timeout=300)
    assert made["mesh"]["data"] == 4 and made["memory"]["peak"] > 0
    assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.glob("*.hlo.gz"))) == 1
    again = requests.compiled(request._replace(config={**config, "seed": 5}), tmp_path, timeout=0)
    assert again == made
    (kept,) = tmp_path.glob("*.json")
    kept.write_text("{")  # damaged: it counts as missing
    assert requests.compiled(request, tmp_path, timeout=0)["failed"] == "timeout"
    other = requests.compiled(request._replace(topology="cpu:2"), tmp_path, timeout=0)
    assert other["failed"] == "timeout"


def test_an_aborted_process_says_why():
    code = (
        "import os; print('F1130 a.cc:7] Check failed: 2 == 1 (2 vs. 1)', flush=True); os.abort()"
    )
    status, output = requests.run_child([sys.executable, "-c", code], {}, 60)
    assert "SIGABRT" in requests.reason_of(status, output)
    assert "Check failed: 2 == 1" in requests.reason_of(status, output)
    status, output = requests.run_child([sys.executable, "-c", "raise ValueError('no x')"], {}, 60)
    assert requests.reason_of(status, output).endswith("(exit status 1): ValueError: no x")


def result_of(temporaries=30 * GIB, **changes):
    memory = dict(parameters=GIB, optimiser=GIB, other=0, batch=0, padding=0,
                  temporaries=temporaries, outputs=0, code=0)  # fmt: skip
    return dict(
        mesh=dict(data=16, particle=1, expert=1, model=1), particles=4, calls=1, examples=64,
        flops=16 * 197e12, compiler=dict(flops=1, bytes=9, seconds=-1.0),
        traffic=dict(main=2 * 819e9, chip=0), loops=[],
        collectives=[dict(kind="all-reduce", axes=["data"], count=1, runs=1, bytes=1, sent=1e11)],
        parameters=1, unknown_loops=0,
        memory=dict(memory, arguments=2 * GIB, peak=2 * GIB + temporaries), program="train",
    ) | changes  # fmt: skip


V5E = slices.parse("v5e:4x4", installed=False)


def test_a_roofline_is_of_the_published_peaks():
    bound = estimates.roofline(result_of(), V5E)
    assert bound[:3] == pytest.approx((1.0, 2.0, 0.5))
    assert (bound.seconds, bound.bound) == (pytest.approx(2.0), "memory")
    assert not estimates.roofline(result_of(loops=[8]), V5E).at_least
    assert estimates.roofline(result_of(loops=[8, None]), V5E).at_least
    assert estimates.roofline(result_of(), slices.parse("cpu:8")) is None
    assert estimates.compiler_seconds(result_of()) is None  # negative: worthless


def test_advice_has_the_least_change_that_fits():
    config = plain("cifar/wide_resnet.py", "size=4")
    advised = estimates.advice(result_of(), config, V5E)
    assert "needs 32.00 GiB of 15.75 GiB" in advised[0]
    # 4 + 28 / k <= .9 of 15.75 for k = 4, where 512 examples are 32 on each of 16 devices
    assert "inference.accumulate=4: about 11.00 GiB, which fits" in advised
    assert any("executor='scan'" in line and "11.00 GiB" in line for line in advised)
    assert any("mesh.particle=4" in line for line in advised)
    assert any("'data'" in line and "28.25 GiB" in line for line in advised)
    assert not estimates.advice(result_of(GIB), config, V5E)
    refused = result_of(failed="memory", reason="RESOURCE_EXHAUSTED: Used 32.00G of 15.75G hbm.")
    assert "inference.accumulate=4: about 11.00 GiB, which fits" in (
        estimates.advice(refused, config, V5E)
    )
    assert estimates.fits(refused, V5E) is False


def test_advice_does_not_divide_what_a_step_holds_of_its_new_state():
    """Measured: an MLP of 64, 20,000, 20,000 and 8 on v5e:2x2 has 4.51 GiB of temporaries, the new
    parameters and Adam's moments, whatever the batch; 30,000 wide it needs 20.21, sharded 5.90."""
    config = plain("digits/mlp.py")
    size = 4 * (64 * 30_000 + 30_000**2 + 30_000 * 8)
    state = dict(parameters=size, optimiser=2 * size, other=0, batch=0)
    result = dict(failed="memory", particles=1, mesh=dict(data=4, particle=1, expert=1, model=1),
                  memory=state, reason="RESOURCE_EXHAUSTED: the total memory required for HLO "
                  "temporaries (20.21G) exceeds available HBM (15.75G)")  # fmt: skip
    lines = estimates.advice(result, config, slices.parse("v5e:2x2", installed=False))
    assert not any("accumulate" in line and "fits" in line for line in lines)
    (sharded,) = (line for line in lines if line.endswith("which fits"))
    assert "'data'" in sharded and "5.09 GiB" in sharded


def test_more_chips_are_advised_where_they_share_what_is_too_large():
    config = plain("cifar/wide_resnet.py", "size=4")
    last = lambda config, **sizes: estimates.advice(  # noqa: E731
        result_of(memory=dict(result_of()["memory"], **sizes)), config, V5E)[-1]  # fmt: skip
    # 2 GiB of state stay on each chip, twice, and 28 / 3 of activations
    assert last(config).startswith("a slice of 3 times")
    large = dict(parameters=20 * GIB, temporaries=30 * GIB, peak=51 * GIB)
    assert last(config, **large).startswith("sharding=[['.*', 'data']] and a slice of 4 times")
    sharded = config | dict(sharding=((".*", "data"),))
    assert last(sharded, **large).startswith("a slice of 4 times")


def test_candidates_are_meshes_of_all_devices_and_none_twice():
    config = plain("cifar/vmoe.py", "size=2")
    found = search.candidates(config, V5E)
    assert len({json.dumps(each.fields) for each in found}) == len(found)
    for each in found:
        mesh = each.fields["mesh"]
        assert math.prod(mesh.values()) == 16 and mesh["model"] == 1
        assert 2 % mesh["particle"] == 0 and 8 % mesh["expert"] == 0
        assert 1024 % (mesh["data"] * mesh["expert"]) == 0
    meshes = {tuple(each.fields["mesh"].values()) for each in found}
    assert meshes == {(16 // p // e, p, e, 1) for p, e in itertools.product((1, 2), (1, 2, 4, 8))}
    assert "inference.accumulate" not in found[0].fields
    changed = search.changed(config, found[0])
    assert changed["mesh"] == found[0].fields["mesh"] and changed["steps"] == config["steps"]


def test_the_best_fits_and_is_the_fastest():
    results = iter([result_of(), result_of(GIB), result_of(GIB / 2)])
    found = search.candidates(plain("cifar/vmoe.py"), V5E)[:3]
    tried = list(search.search(found, lambda _: next(results), V5E, 3))
    assert search.best(tried, V5E) is tried[2]  # as fast, with less memory
    assert search.best(tried[:1], V5E) is None
    refused = dict(failed="config", reason="x")  # not compiled
    results = iter([refused, result_of(), refused, result_of(GIB), result_of(GIB)])
    found = search.candidates(plain("cifar/vmoe.py"), V5E)
    assert len(list(search.search(found, lambda _: next(results), V5E, 2))) == 4


def test_advice_of_a_search_is_on_what_came_closest():
    """Parts of a batch are counted from those of that candidate."""
    config = plain("cifar/wide_resnet.py", "size=4")
    mesh = dict(data=16, particle=1, expert=1, model=1)
    parts = [search.Candidate({"mesh": mesh, "inference.accumulate": k}) for k in (1, 2, 4)]
    results = [result_of(120 * GIB), result_of(60 * GIB), dict(failed="config", reason="x")]
    tried = list(map(search.Tried, parts, results))
    closest, lines = search.advice(tried, config, V5E)
    assert closest is tried[1]
    # 4 + 58 * 2 / k <= .9 of 15.75 for k = 16, with 32 examples on each device
    assert "inference.accumulate=16: about 11.25 GiB, which fits" in lines
    assert search.advice(tried[2:], config, V5E) == (None, [])


def test_a_table_keeps_its_records_and_shows_failures(tmp_path):
    whole = table.read_table("configs/accelerators.py")
    rows = whole.rows
    train = result_of(GIB, versions=requests.versions(), seconds=dict(compile=5), wall_seconds=9)
    failed = train | dict(failed="aborted", reason="Check failed: x")
    predict = table.key_of(rows[0].request("predict"))
    known = {
        "a": dict(key="a", **rows[0]._asdict(), program="train", result=train),
        predict: dict(key=predict, **rows[0]._asdict(), program="predict", result=train),
        "b": dict(key="b", **rows[1]._asdict(), program="train", result=failed),
    }
    table.write_records(tmp_path, known)
    assert table.records(tmp_path) == json.loads(json.dumps(known))
    table.run(rows[:1], tmp_path, tmp_path, 0, ["predict"])  # it is there
    table.write(whole, tmp_path, tmp_path / "programs.html", "command")
    text = (tmp_path / "table.md").read_text()
    assert "One seed" not in text and "Check failed: x" in text
    page = (tmp_path / "programs.html").read_text()
    assert "Check failed: x" in page and rows[0].label in page
    assert sorted(p.name for p in (tmp_path / "programs_figures").iterdir()) == [
        "memory.png", "time.png"
    ]  # fmt: skip


@pytest.mark.parametrize("chips", [16, 32, 64])
def test_between_two_sizes_shares_of_a_batch_are_exact(chips):
    def step(chips):
        return dict(bytes=512 / chips + 7, gathered=2 * (1 - 8 / chips), exchanged=1024 / chips)

    known = {c: step(c) | dict(reduced=1.0) for c in (8, 128)}
    assert scaling.between(known, chips) == pytest.approx(step(chips))
    assert scaling.between({8: step(8)}, chips) == {}  # nothing is extrapolated


def test_a_size_that_was_not_compiled_has_its_shapes_and_arithmetic():
    rows = [
        table.Row("a", "configs/digits/mlp.py", {}, f"v5e:{n}x4") for n in (2, 4, 8)
    ]  # 8, 16 and 32 chips
    memory = dict(parameters=GIB, optimiser=2 * GIB, other=0, batch=5)
    shapes = dict(flops=16 * 197e12, examples=64, state=4 * GIB, hosts=4, shares=2, memory=memory)
    twice = [dict(kind="all-to-all", axes=["expert"], count=1, runs=1, bytes=1, sent=2e11)]
    results = [{"shapes": shapes, "train": result_of()}, {"shapes": shapes},
               {"shapes": shapes, "train": result_of(collectives=twice)}]  # fmt: skip
    first, middle, last = scaling.sizes(list(zip(rows, results, strict=True)))
    assert [first.compiled, middle.compiled, last.compiled] == [True, False, True]
    assert "peak" not in middle.values and middle.values["state"] == 3 * GIB
    assert middle.times == pytest.approx(dict(compute=1, memory=2))
    assert middle.values["images"] == pytest.approx(64 / 2 / 2)
    assert middle.values["checkpoint"] == GIB
    assert first.values["reduced"] == 1e11 and last.values["exchanged"] == 2e11
    labels = [row["label"] for row in scaling.table_rows([first, middle, last])]
    assert labels == ["a, v5e:2x4", "a, v5e:4x4, arithmetic", "a, v5e:8x4"]
    points = [Bounds(e.label, e.chips, e.times, e.compiled) for e in (first, middle, last)]
    (ax,) = sizes_figure([*points, points[0]._replace(label="alone")]).axes
    links = next(line for line in ax.lines if line.get_label() == "collectives")
    np.testing.assert_allclose(links.get_data(), [[8, 32], [500, 1000]])
    hollow = [line.get_xdata()[0] for line in ax.lines if line.get_markerfacecolor() == "white"]
    assert hollow == [16] * 2


@pytest.mark.parametrize("name", ["accelerators", "scaling"])
def test_the_committed_table_is_what_its_records_say(name):
    folder = project.ROOT / "results" / name
    former = (folder / "table.json").read_text()
    made = table.study(
        table.read_table(f"configs/{name}.py"), folder, json.loads(former)["command"]
    )
    assert formats.to_json(made) == former
    assert formats.to_markdown(made) == (folder / "table.md").read_text()
