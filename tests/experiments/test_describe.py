"""Every part that a config can name is described, from its signature and docstring alone."""

import inspect
import json
import pathlib

import pytest

from experiments import describe
from experiments.describe import SECTIONS, every_part, find
from uncertainty.build import ConfigError, resolve

ROOT = pathlib.Path(__file__).parents[2]
PARTS = list(every_part())
# Section -> where `uncertainty.specs` looks for its parts, and the files that have none.
FOLDERS = {
    "backbones": ("backbones", {"inputs"}),
    "ensembles": ("ensembles", {"replace"}),
    "heads": ("heads", set()),
    "objectives": ("objectives", set()),
    "directions": ("inference.directions", {"interacting", "spectral"}),
    "kernels": ("inference.kernels", set()),
    "stages": ("stages", {"training"}),
}
MODULES = {
    "likelihoods": "likelihoods",
    "priors": "priors",
    "optimisers": "optimisers.optimiser",
    "schedules": "optimisers.schedules",
    "annealing": "inference.annealing",
    "context": "inference.context",
    "collect": "inference.thinning",
    "views": "views",
    "symmetries": "symmetries",
}


@pytest.mark.parametrize("part", PARTS, ids=lambda p: f"{p.section}.{p.name}")
def test_every_part_and_every_field_is_described(part):
    assert part.about and part.about[0] != "-"
    for field in (*part.fields, *part.shared):
        assert field.text, f"{part.section}.{part.name}.{field.name} has no description"
    target = SECTIONS[part.section].parts()[part.name]
    fields = {field.name: field for field in part.fields}
    for name, parameter in inspect.signature(target).parameters.items():
        if name in (*SECTIONS[part.section].given, "self", "parent", "name"):
            assert name not in fields or part.section != "heads"
        elif parameter.kind is not parameter.VAR_KEYWORD:
            assert (fields[name].default is None) == (parameter.default is parameter.empty)


@pytest.mark.parametrize("section", [*FOLDERS, *MODULES])
def test_names_are_those_of_configs(section):
    """Each resolves to the same object, and no file is left out."""
    folder, helpers = FOLDERS.get(section, (MODULES.get(section), set()))
    names = SECTIONS[section].parts()
    assert all(resolve(folder, name, "x") is target for name, target in names.items())
    if section in FOLDERS:
        files = {p.stem for p in (ROOT / "uncertainty" / folder.replace(".", "/")).glob("*.py")}
        assert {name.partition(".")[0] for name in names} == files - helpers - {"__init__"}


def test_evaluators_and_data_are_those_of_configs():
    files = {p.stem for p in (ROOT / "experiments" / "evaluators").glob("*.py")} - {"__init__"}
    assert set(SECTIONS["evaluators"].parts()) == files
    assert {"digits", "npz", "idx", "tfds"} <= set(SECTIONS["data"].parts())
    (npz,) = (p for p in PARTS if p.name == "npz")
    assert "'train' by default" in {f.name: f.text for f in npz.shared}["split"]


def test_a_part_a_field_and_a_section_are_found():
    kind, (sngp,) = find("heads.sngp")
    assert kind == "parts" and sngp.name == "sngp.Sngp" and "Liu et al." in sngp.source
    fields = {field.name: field for field in sngp.fields}
    assert fields["outputs"].default is None and fields["outputs"].type == "int"
    for query in ("sngp", "head.sngp", "heads.sngp.Sngp", "heads.Sngp"):
        assert find(query) == ("parts", [sngp])
    assert find("heads") == ("section", "heads")
    kind, (part, field) = find("heads.sngp.outputs")
    assert kind == "field" and part == sngp and field == fields["outputs"]
    _, (_, kernel) = find("directions.svgd.kernel")
    assert set(kernel.choices) == set(SECTIONS["kernels"].parts()) and kernel.default == "rbf"
    _, (_, space) = find("svgd.space")
    assert "weights" in space.choices
    _, (_, initial) = find("heads.dense.kernel_init")
    assert {"glorot_uniform", "normal"} <= set(initial.choices)
    assert {p.section for p in find("laplace")[1]} == {"heads", "priors", "stages"}
    (own,) = find("uncertainty.heads.dense:Dense")[1]
    assert [f.name for f in own.fields] == ["outputs", "kernel_init", "bias_init", "dense"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("haeds", "did you mean 'heads'"),
        ("heads.sgnp", "no 'sgnp' in heads; did you mean 'sngp'"),
        ("heads.sngp.output", "has no field 'output'; did you mean 'outputs'"),
        ("zzz", r"nothing is called 'zzz'; \(valid: annealing, augmentations"),
        ("no_package.heads:Head", "there is no module 'no_package'"),
    ],
)
def test_unknown_names_suggest_the_nearest(query, message, capsys):
    with pytest.raises(ConfigError, match=message):
        find(query)
    assert describe.main([query]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("query", ["", "heads", "heads.sngp", "stages.swag.rank"])
def test_the_program_prints_text_and_json(query, capsys):
    assert describe.main([query]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 110
    assert describe.main([query, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    names = {"": set(SECTIONS), "heads": {"heads"}}.get(query)
    assert names is None or set(data) == names
    if query == "heads.sngp":
        assert data[0]["fields"][0]["name"] in text


def test_a_docstring_is_read_to_its_end():
    doc = """One.

    Args:
      a, b: of both,
        on two lines.
      c: see (a):
        x: no entry.

    Raises:
      d: nothing.
    """
    texts = describe.entries(inspect.cleandoc(doc))
    assert texts == {"a": "of both, on two lines.", "b": "of both, on two lines.", "c": texts["c"]}
    assert describe.first_sentence("A b (Li et al. 2020). C d.") == "A b (Li et al. 2020)."
