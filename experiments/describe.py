"""Describes every part that a config can name: its fields, their types and defaults, its source.

    python -m experiments.describe                      all sections and their parts
    python -m experiments.describe heads                the parts of a section
    python -m experiments.describe heads.sngp           one part and its fields
    python -m experiments.describe heads.sngp.outputs   one field, and what it may be
    python -m experiments.describe my_package.heads:MyHead --json

All of it is read from signatures and docstrings.
"""

import argparse
import importlib
import inspect
import json
import pkgutil
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import flax.linen as nn
from numpy.typing import ArrayLike

from experiments import evaluators
from experiments.data import assignment, augment, from_tfds
from experiments.data.own import OWN
from experiments.data.source import COMMON, load
from uncertainty import types
from uncertainty.build import ConfigError, resolve
from uncertainty.optimisers.optimiser import optimiser
from uncertainty.specs import NESTED, imported, is_path, suggestion

WIDTH = 100


class Section(NamedTuple):
    """A kind of part."""

    about: str
    place: str  # where a config names one
    parts: Callable[[], dict[str, Callable]]  # name in a config -> class or function
    given: tuple[str, ...] = ()  # arguments that are not fields of a config
    shared: Callable | None = None  # documents further fields, which all of them have


class Field(NamedTuple):
    name: str
    type: str
    default: str | None  # None: it is required
    text: str
    choices: tuple[str, ...] = ()


class Part(NamedTuple):
    section: str
    name: str  # as in a config
    about: str  # the first sentence
    text: str  # the docstring
    source: str  # of the method, if it is another's
    fields: tuple[Field, ...]
    shared: tuple[Field, ...] = ()


# Parts of backbones and of ensembles, which no config names.
INTERNAL = ("choice", "interacting", "replace", "residual")


def _of_kind(
    package: str, kind: type, functions: bool = False
) -> Callable[[], dict[str, Callable]]:
    """The classes of a package that derive from `kind`, and the functions that return it.

    With `functions` those alone.
    """

    def parts() -> dict[str, Callable]:
        found = {}
        for file, module in _modules(package):
            if file in INTERNAL:
                continue
            for name, value in vars(module).items():
                if getattr(value, "__module__", "") != module.__name__ or name.startswith("_"):
                    continue
                if inspect.isclass(value):
                    if issubclass(value, kind) and not functions:
                        found[f"{file}.{name}"] = value
                elif inspect.isfunction(value):
                    made = value.__annotations__.get("return")
                    if name == file and inspect.isclass(made) and issubclass(made, kind):
                        found[name] = value
        return found

    return parts


def _modules(package: str) -> Iterator[tuple[str, Any]]:
    """(file, module) of a package, in its folders too."""
    path = importlib.import_module(package).__path__
    for entry in pkgutil.iter_modules(path):
        module = f"{package}.{entry.name}"
        if entry.ispkg:
            yield from _modules(module)
        else:
            yield entry.name, importlib.import_module(module)


def _functions(module: str) -> Callable[[], dict[str, Callable]]:
    """The public functions of a module."""

    def parts() -> dict[str, Callable]:
        loaded = importlib.import_module(module)
        own = getattr(loaded, "__all__", None)
        return {
            name: value
            for name, value in vars(loaded).items()
            if inspect.isfunction(value)
            and (name in own if own else value.__module__ == module and name[0] != "_")
        }

    return parts


def _named(package: str) -> Callable[[], dict[str, Callable]]:
    """The function `file` of each file of a package; none where there is no such package."""

    def parts() -> dict[str, Callable]:
        try:
            modules = dict(_modules(package))
        except ModuleNotFoundError:
            return {}
        return {file: getattr(m, file) for file, m in modules.items() if hasattr(m, file)}

    return parts


def _augmentations() -> dict[str, Callable]:
    return {
        name: value
        for name, value in _functions(augment.__name__)().items()
        if "draw" in inspect.signature(value).parameters
    }


def _assignments() -> dict[str, Callable]:
    return {
        name: value
        for name, value in _functions(assignment.__name__)().items()
        if "p" in inspect.signature(value).parameters and name != "all_of"
    }


OF_FILES = ("posthoc", "conformal", "combining", "ood")  # whose files say what the method is
_RUN = ("model", "over", "train", "num_validation")
_DIRECTION = ("over", "target", "accumulate", "objective", "own_examples")
SECTIONS = {
    "backbones": Section(
        "features phi(x)", "backbone", _of_kind("uncertainty.backbones", types.Backbone)
    ),
    "ensembles": Section(
        "how members share one set of parameters",
        "ensemble",
        _of_kind("uncertainty.ensembles", types.Network, functions=True),
        ("backbone", "head"),
    ),
    "heads": Section(
        "the Gaussian over the latents of one member",
        "head",
        _of_kind("uncertainty.heads", types.Head),
    ),
    "likelihoods": Section("p(y | u)", "likelihood", _functions("uncertainty.likelihoods")),
    "objectives": Section(
        "what each particle minimises",
        "objective",
        _of_kind("uncertainty.objectives", types.Objective),
    ),
    "views": Section(
        "random changes of images on the device",
        "objective.views",
        _functions("uncertainty.views"),
        ("x", "key"),
    ),
    "symmetries": Section("of images", "objective.symmetry", _functions("uncertainty.symmetries")),
    "inference": Section(
        "where parameters come from",
        "inference",
        lambda: {"particles": resolve("inference", "particles", "inference")},
        ("model", "optimiser", "num_examples", "objective", "own_examples"),
    ),
    "directions": Section(
        "where particles move",
        "inference.direction",
        _of_kind("uncertainty.inference.directions", types.Direction),
        _DIRECTION,
    ),
    "kernels": Section(
        "between particles",
        "inference.direction.kernel",
        _of_kind("uncertainty.inference.kernels", types.Kernel),
    ),
    "annealing": Section(
        "of the gradient of SVGD and WGD",
        "inference.direction.annealing",
        _functions("uncertainty.inference.annealing"),
    ),
    "context": Section(
        "points where functions are compared",
        "inference.direction.context",
        _functions("uncertainty.inference.context"),
    ),
    "collect": Section(
        "which parameters predictions average over",
        "inference.collect",
        _functions("uncertainty.inference.thinning"),
        ("total_steps",),
    ),
    "priors": Section("p(theta)", "inference.prior", _functions("uncertainty.priors")),
    "optimisers": Section(
        "optimisers and samplers",
        "optimiser",
        _functions("uncertainty.optimisers.optimiser"),
        shared=optimiser,
    ),
    "schedules": Section(
        "of the learning rate",
        "optimiser.schedule",
        _functions("uncertainty.optimisers.schedules"),
        ("total_steps",),
    ),
    "stages": Section(
        "after training", "stages", _of_kind("uncertainty.stages", types.Stage), _RUN
    ),
    "posthoc": Section(
        "calibration on held-out examples",
        "evaluators.posthoc.methods",
        _named("uncertainty.posthoc"),
        ("log_p", "labels", "mean", "variance", "y"),
    ),
    "conformal": Section(
        "prediction sets",
        "evaluators.conformal.methods",
        _named("uncertainty.conformal"),
        ("log_p", "labels", "u", "low", "high", "directions", "mean", "scale", "y", "groups"),
    ),
    "ood": Section(
        "scores of out-of-distribution data",
        "evaluators.ood.scores",
        _named("uncertainty.ood"),
        ("train", "logits", "x"),
    ),
    "combining": Section(
        "members chosen by held-out examples",
        "evaluators.combination.methods",
        _named("uncertainty.combining"),
        ("log_p", "labels"),
    ),
    "layers": Section(
        "layers in a field of a backbone", "backbone.*", _of_kind("uncertainty.layers", nn.Module)
    ),
    "data": Section(
        "data sets",
        "data.train",
        lambda: {**OWN, "tfds": from_tfds.tfds},
        ("name",),
        shared=load,
    ),
    "augmentations": Section(
        "of training data", "data.augment", _augmentations, ("batch", "draw", "classes")
    ),
    "examples": Section(
        "which examples a particle sees", "data.particles", _assignments, ("source", "seed", "p")
    ),
    "evaluators": Section("metrics of a trained run", "evaluators", _named(evaluators.__name__)),
}


def part_of(section: str, name: str, target: Callable) -> Part:
    """The description of a part.

    Args:
      section: one of SECTIONS, or '' for a part of another package.
      name: in a config.
      target: the class or function.
    """
    of = SECTIONS.get(section, Section("", "", dict))
    doc, texts = inspect.getdoc(target) or "", documented(target)
    about = first_sentence(doc)
    if section in OF_FILES:
        of_file = inspect.cleandoc(sys.modules[target.__module__].__doc__ or "")
        about = first_sentence(of_file) or about
        if section != "ood":  # whose functions begin with their equations
            doc = f"{of_file}\n\n{doc}".strip()
    shared: tuple[Field, ...] = ()
    if of.shared is load:
        nested = entries(textwrap.dedent(_entry_lines(inspect.getdoc(load) or "", "spec")))
        shared = tuple(_common(field, nested) for field in COMMON)
    elif of.shared is not None:
        every = documented(of.shared)
        shared = tuple(_fields(section, of.shared, every, ("direction", "schedule")))
    return Part(
        section,
        name,
        about,
        doc,
        source_of(target),
        tuple(_fields(section, target, texts, of.given)),
        shared,
    )


def _common(name: str, texts: Mapping[str, str]) -> Field:
    return Field(name, "", "", texts.get(name, ""), _quoted(texts.get(name, "")))


def _fields(
    section: str, target: Callable, texts: Mapping[str, str], given: Sequence[str]
) -> Iterator[Field]:
    parameters = inspect.signature(target).parameters
    try:
        hints = typing.get_type_hints(target)
    except (NameError, TypeError):
        hints = {}
    ignored = {"self", "parent", *given}
    if inspect.isclass(target) and issubclass(target, nn.Module):
        ignored.add("name")
    for name, parameter in parameters.items():
        if name in ignored or parameter.kind is parameter.VAR_KEYWORD:
            continue
        kind = type_text(hints.get(name, parameter.annotation))
        required = parameter.default is inspect.Parameter.empty
        default = None if required else default_text(parameter.default)
        text = texts.get(name, "")
        choices = _choices(section, name) or _constant(target, text)
        choices = choices or (_quoted(text) if "str" in kind.split(" | ") else ())
        yield Field(name, kind, default, text, choices)


def _choices(section: str, field: str) -> tuple[str, ...]:
    """The parts that a field may name."""
    folders = {"directions": "inference.directions"}
    inner = NESTED.get((folders.get(section, section), field), "")
    inner = inner.removeprefix("inference.")
    if (section, field) == ("inference", "direction"):
        inner = "directions"
    elif (section, field) in (("inference", "prior"), ("inference", "collect")):
        inner = {"prior": "priors"}.get(field, field)
    if field.endswith("_init"):
        return tuple(
            name
            for name, value in vars(nn.initializers).items()
            if inspect.isfunction(value) and "key" not in inspect.signature(value).parameters
        )
    return tuple(SECTIONS[inner].parts()) if inner in SECTIONS else ()


def _constant(target: Callable, text: str) -> tuple[str, ...]:
    """The values of a constant that a field's text names, as in 'one of `executors.NAMES`'."""
    match = re.search(r"one of `?((?:\w+\.)*[A-Z_]+)\b", text)
    if match is None:
        return ()
    modules = [sys.modules[target.__module__]]
    modules += [m for m in vars(modules[0]).values() if inspect.ismodule(m)]
    modules += [
        sys.modules[value.__module__]
        for value in vars(modules[0]).values()
        if inspect.isfunction(value)
    ]
    for module in modules:
        values = getattr(module, match[1].rpartition(".")[2], None)
        if isinstance(values, tuple | list | dict | set | frozenset):
            return tuple(map(str, values))
    return ()


def _quoted(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(re.findall(r"(?<!\w)'([\w.-]+)'", text)))


def type_text(hint: Any) -> str:
    """A type in a few words, without the names of modules."""
    if hint is inspect.Parameter.empty or hint is Any:
        return "any"
    if hint == ArrayLike:
        return "array"
    text = hint if isinstance(hint, str) else inspect.formatannotation(hint)
    text = re.sub(r"\bCallable(\[\[?.*\])?", "a part or function", text)
    text = re.sub(r"\b(\w+\.)+(?=\w)", "", text)
    return text.replace("Any", "any")


def default_text(value: Any) -> str:
    """A default as a config writes it."""
    if inspect.isclass(value):
        return value.__name__
    if isinstance(value, typing.Hashable) and callable(value):
        inner = getattr(value, "func", value)
        name = getattr(inner, "__qualname__", type(inner).__name__)
        return name.partition(".<locals>")[0].rpartition(".")[2]
    return repr(value)


def documented(target: Callable, seen: tuple[Any, ...] = ()) -> dict[str, str]:
    """Field -> text, of the docstring, of those of base classes and of those that it refers to."""
    texts: dict[str, str] = {}
    docs = [inspect.getdoc(target) or ""]
    if inspect.isclass(target):
        docs = [inspect.cleandoc(c.__doc__ or "") for c in target.__mro__ if c is not object]
    for doc in docs:
        texts = {**entries(doc), **texts}
    names = vars(sys.modules[target.__module__])
    references = re.findall(r"(?:[Aa]rguments|Others) are those of `(\w+)`", docs[0])
    for word in references:
        other = names.get(word)
        if other is not None and other not in seen:
            texts = {**documented(other, (*seen, target)), **texts}
    for name, text in texts.items():
        match = re.match(r"(?:see|as in|as for) `(\w+)`", text)
        other = (names.get(match[1]) or _beside(target, match[1])) if match else None
        if callable(other) and other not in (target, *seen):
            texts[name] = documented(other, (*seen, target)).get(name, text)
    of_file = sys.modules[target.__module__].__doc__ or ""
    prose = f"{prose_of(docs[0])}\n{of_file}"
    sentences = re.split(r"(?<=[.:;]) (?=[A-Z`(])", " ".join(prose.split()))
    for name in inspect.signature(target).parameters:
        said = next((text for text in sentences if f"`{name}`" in text), "")
        if said and not texts.get(name):
            texts[name] = said
    return texts


def _beside(target: Callable, name: str) -> Any:
    """The function `name` of the file `name` in the package of a target, or None."""
    package = target.__module__.rpartition(".")[0]
    module = f"{package}.{name}"
    known = package and find_spec(module)
    return getattr(importlib.import_module(module), name, None) if known else None


def entries(doc: str) -> dict[str, str]:
    """The entries of the sections Args and Attributes of a docstring, or of such lines alone."""
    texts: dict[str, str] = {}
    inside, indent, current = "Args:" not in doc and "Attributes:" not in doc, 0, ()
    for line in doc.splitlines():
        if re.fullmatch(r"\s*(Args|Attributes):", line):
            inside, indent, current = True, len(line) - len(line.lstrip()) + 2, ()
            continue
        depth = len(line) - len(line.lstrip())
        if not inside or (line.strip() and depth < indent):
            inside = inside and not line.strip()
            if not inside:
                continue
        entry = re.fullmatch(r"\s*([\w*]+(?:, [\w*]+)*):(?: +(.*))?", line)
        if entry and depth == indent:
            current = tuple(name.strip("* ") for name in entry[1].split(","))
            texts |= dict.fromkeys(current, entry[2] or "")
        elif current and line.strip():
            texts |= dict.fromkeys(current, f"{texts[current[0]]} {line.strip()}".strip())
        elif not line.strip():
            current = ()
    return texts


def _entry_lines(doc: str, name: str) -> str:
    """The lines below an entry of Args."""
    lines = doc.splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{name}:"))
    depth = len(lines[start]) - len(lines[start].lstrip())
    below = []
    for line in lines[start + 1 :]:
        if line.strip() and len(line) - len(line.lstrip()) <= depth:
            break
        below.append(line)
    entry = re.compile(rf"\s{{{depth + 2}}}\w+(, \w+)*: ")
    nested = [i for i, line in enumerate(below) if entry.match(line)]
    return "\n".join(below[nested[0] :] if nested else [])


def prose_of(doc: str) -> str:
    """A docstring without its sections."""
    return re.split(r"\n(?:Args|Attributes|Returns|Raises):", doc)[0].rstrip()


def first_sentence(doc: str) -> str:
    """The first sentence of a docstring."""
    text = " ".join(doc.partition("\n\n")[0].split())
    return re.split(r"(?<=[.:])(?<!e\.g\.)(?<!et al\.) (?=[A-Z`])", text)[0]


NAME = r"[A-Z]'?[\w-]+"  # of an author
CITATION = re.compile(
    rf"{NAME}(?:(?:,\s{NAME})*,?\s&\s{NAME}|\set\sal\.)?,?\s(?:\d{{4}}|\(\d{{4}}(?=\)))\b"
)


def source_of(target: Callable) -> str:
    """The paper of a method: the docstring's `Source: ...`, or what it or its file cites."""
    docs = [inspect.getdoc(target) or "", sys.modules[target.__module__].__doc__ or ""]
    for doc in docs:
        if match := re.search(r"Source: (.*?)(?:\n\s*\n|\Z)", doc, re.DOTALL):
            return " ".join(match[1].split())
    for doc in docs:
        cited = [re.sub(r",? \(?(?=\d)", " ", match[0]) for match in CITATION.finditer(doc)]
        if cited:
            return "; ".join(dict.fromkeys(" ".join(one.split()) for one in cited))
    return ""


def find(query: str) -> tuple[str, Any]:
    """What a query names.

    Returns:
      'all' and None; 'section' and its name; 'parts' and a list of Part; or 'field' and (Part,
      Field).

    Raises:
      ConfigError: nothing has this name; the message has the nearest names.
    """
    if not query:
        return "all", None
    if is_path(query):
        return "parts", [part_of("", query, imported(query, "describe"))]
    section, _, rest = query.partition(".")
    section = _plural(section)
    if section in SECTIONS and not rest:
        return "section", section
    inside = {section: rest} if section in SECTIONS else {name: query for name in SECTIONS}
    words, matches = rest if section in SECTIONS else query, []
    for name, word in inside.items():
        for part, target in SECTIONS[name].parts().items():
            if word.lower() in _aliases(part):
                matches.append(part_of(name, part, target))
    if matches:
        return "parts", matches
    owner, _, field = query.rpartition(".")
    if owner and _plural(owner) not in SECTIONS:
        try:
            kind, found = find(owner)
        except ConfigError:
            kind, found = "", []
        if kind == "parts":
            every = [(p, f) for p in found for f in (*p.fields, *p.shared) if f.name == field]
            if every:
                return "field", every[0]
            names = {f.name for p in found for f in (*p.fields, *p.shared)}
            raise ConfigError(f"describe: {owner} has no field {field!r}; {_near(field, names)}")
    if section in SECTIONS:
        names = list(SECTIONS[section].parts())
        short = {alias for part in names for alias in _aliases(part)}
        raise ConfigError(f"describe: no {words!r} in {section}; {_near(words, short, names)}")
    names = [*SECTIONS]
    for each in SECTIONS.values():
        names += [alias for part in each.parts() for alias in _aliases(part)]
    raise ConfigError(f"describe: nothing is called {query!r}; {_near(query, names, SECTIONS)}")


def _plural(word: str) -> str:
    """The section of its name in a config, such as `head`."""
    return f"{word}s" if word not in SECTIONS and f"{word}s" in SECTIONS else word


def _aliases(part: str) -> set[str]:
    """Lower-case names of a part: `sngp.sngp`, `sngp`."""
    return {part.lower(), *part.lower().split(".")}


def _near(word: str, valid: Any, shown: Any = None) -> str:
    return f"{suggestion(word.lower(), valid)}(valid: {', '.join(sorted(shown or valid))})"


def every_part() -> Iterator[Part]:
    """The descriptions of all parts of the project."""
    for name, section in SECTIONS.items():
        for part, target in section.parts().items():
            yield part_of(name, part, target)


def _lines(text: str, indent: int) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent)


def text_of_section(name: str) -> str:
    section = SECTIONS[name]
    lines = [f"{name}: {section.about}  (config.{section.place})"]
    parts = section.parts()
    width = min(max((len(part) for part in parts), default=0), 36)
    for part, target in parts.items():
        first = textwrap.shorten(
            part_of(name, part, target).about, WIDTH - width - 4, placeholder=" ..."
        )
        lines.append(f"  {part:{width}}  {first}")
    return "\n".join(lines)


# Conformal methods of targets, which evaluators of their own take.
_OF_TARGETS = {
    "split": "evaluators.intervals.methods",
    "cqr": "evaluators.intervals.methods",
    "regions": "evaluators.regions",
}


def place_of(section: str, part: str) -> str:
    """Where a config names a part: 'head', 'evaluators.conformal.methods'."""
    if section == "conformal" and part in _OF_TARGETS:
        return _OF_TARGETS[part]
    return SECTIONS[section].place if section else "*"


def text_of_part(part: Part) -> str:
    place = place_of(part.section, part.name)
    place += "" if place.startswith("evaluators.") and place != "evaluators" else ".name"
    lines = [f"{part.name}  (config.{place})", "", textwrap.indent(prose_of(part.text), "  ")]
    if part.source:
        lines += ["", "  Source:", _lines(part.source, 4)]
    for title, fields in (("Fields", part.fields), ("Fields of all of them", part.shared)):
        if fields:
            lines += ["", f"  {title}:", *(text_of_field(field) for field in fields)]
    return "\n".join(lines)


def text_of_field(field: Field) -> str:
    default = ", required" if field.default is None else f" = {field.default}" * bool(field.default)
    kind = f": {field.type}" * bool(field.type)
    lines = [f"    {field.name}{kind}{default}", _lines(field.text or "-", 8)]
    if field.choices:
        lines.append(_lines(f"One of: {', '.join(field.choices)}", 8))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.describe", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", nargs="?", default="", help="a section, part or field")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    try:
        kind, found = find(args.name)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if kind == "field":
        part, field = found
        data = field._asdict()
        text = f"{part.section}.{part.name}.{field.name}\n{text_of_field(field)}"
    elif kind == "parts":
        data = [_plain(part) for part in found]
        text = "\n\n".join(map(text_of_part, found))
    else:
        names = SECTIONS if kind == "all" else [found]
        data = {
            name: [_plain(part_of(name, *item)) for item in SECTIONS[name].parts().items()]
            for name in names
        }
        text = "\n\n".join(text_of_section(name) for name in names if SECTIONS[name].parts())
    print(json.dumps(data, indent=2) if args.json else text)
    return 0


def _plain(part: Part) -> dict[str, Any]:
    fields = dict(fields=part.fields, shared=part.shared)
    return part._asdict() | {k: [f._asdict() for f in v] for k, v in fields.items()}


if __name__ == "__main__":
    sys.exit(main())
