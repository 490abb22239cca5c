"""A page for each method: its equation, source, fields and config line, and what our tables say.

Text, source and fields are those of `python -m experiments.describe`, which reads docstrings and
signatures; results are those of `results/*/table.json`, of the rows whose recorded configs name it.
"""

import functools
import html
import json
import pathlib
import posixpath
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from experiments import describe
from experiments.reports.formats import escape_markdown
from experiments.runtime import project
from tools import docs

# The sections of which each part has a page; those of the others have one page together.
METHODS = (
    "inference", "directions", "ensembles", "heads", "likelihoods", "objectives", "optimisers",
    "stages", "posthoc", "conformal", "combining", "ood",
)  # fmt: skip
COLUMNS = 7  # of a table on a method's page
EXAMPLES = {
    "outputs": "10", "size": "4", "steps": "1_000", "every": "100", "blocks": "2",
    "learning_rate": "1e-3", "experts": "8", "num_experts": "8",
}  # fmt: skip


def pages() -> dict[str, str]:
    """Path -> Markdown of all pages."""
    made = {}
    used = uses()
    for name, section in describe.SECTIONS.items():
        parts = [describe.part_of(name, *item) for item in section.parts().items()]
        if not parts:
            continue
        if name in METHODS:
            for part in parts:
                made[path_of(part)] = page(part, used)
            made[f"docs/methods/{name}/index.md"] = contents(name, parts)
        else:
            made[f"docs/methods/{name}.md"] = together(name, parts)
    made["docs/methods/index.md"] = index(made)
    return made


def navigation(made: Mapping[str, str]) -> list[Any]:
    """The entries of these pages in the site's table of contents."""
    entries: list[Any] = ["docs/methods/index.md"]
    for name in sorted(describe.SECTIONS, key=lambda n: n not in METHODS):
        inside = sorted(p for p in made if p.startswith(f"docs/methods/{name}/"))
        if inside:
            inside.sort(key=lambda p: not p.endswith("/index.md"))
            titles = [{pathlib.PurePath(p).stem.rpartition(".")[2]: p} for p in inside[1:]]
            entries.append({name: [inside[0], *titles]})
        elif f"docs/methods/{name}.md" in made:
            entries.append({name: f"docs/methods/{name}.md"})
    return entries


def path_of(part: describe.Part) -> str:
    return f"docs/methods/{part.section}/{part.name}.md"


def page(part: describe.Part, used: Mapping[tuple[str, str], list]) -> str:
    section = describe.SECTIONS[part.section]
    lines = [
        f"# `{part.name}`",
        f"*{sentence(section.about)}*: a part of the section "
        f"[{part.section}](index.md) of a config.",
        body(part),
        "## In a config",
        f"```python\n{config_line(part)}\n```",
    ]
    if part.fields or part.shared:
        lines += ["## Fields", fields(part.fields)]
    if part.shared:
        lines += ["Fields that all of this section have:", fields(part.shared)]
    tables = used.get((part.section, part.name))
    lines += ["## In our tables"]
    if tables:
        lines += [shown(*item, path_of(part)) for item in tables]
    elif tables is None:
        lines += ["No committed table has it."]
    else:
        lines += ["Every row of the tables that have it uses it, so none compares it with others."]
    return "\n\n".join(filter(None, lines)) + "\n"


def body(part: describe.Part) -> str:
    """The docstring up to its sections, as Markdown, and the source if the text has none.

    A first paragraph that is an equation is set as one.
    """
    first, _, rest = describe.prose_of(part.text).partition("\n\n")
    equation = re.search(r"\s(=|<-|~)\s", first) and "`" not in first
    text = (display(" ".join(first.split())) if equation else markdown(first)) + "\n\n"
    text += markdown(rest)
    said = plain(describe.prose_of(part.text))
    if not all(plain(one) in said for one in part.source.split("; ")):
        text += f"\n\nSource: {part.source.rstrip('.')}."
    return re.sub(r"^Source: ", "**Source.** ", text, flags=re.MULTILINE)


def plain(text: str) -> str:
    """A text whose citations are alike, with brackets and commas or without."""
    return " ".join(re.sub(r"[(),]", " ", text).split())


def markdown(text: str) -> str:
    """A docstring's prose; indented lines are equations, or what stands below `Example::`."""
    paragraphs = []
    for paragraph in filter(str.strip, re.split(r"\n\s*\n", text.strip("\n"))):
        lines = paragraph.splitlines()
        if all(line.startswith("  ") for line in lines):
            paragraphs.append(display(textwrap.dedent(paragraph)))
        else:
            paragraphs.append("\n".join(map(escaped, lines)))
    return "\n\n".join(paragraphs)


GREEK = dict(
    alpha="α", beta="β", gamma="γ", delta="δ", epsilon="ε", eps="ε", eta="η", theta="θ", kappa="κ",
    lam="λ", lambda_="λ", mu="μ", nu="ν", xi="ξ", pi="π", rho="ρ", sigma="σ", tau="τ", phi="φ",
    psi="ψ", omega="ω", Gamma="Γ", Delta="Δ", Theta="Θ", Lambda="Λ", Sigma="Σ", Phi="Φ", Omega="Ω",
    sum="∑", prod="∏", grad="∇", sqrt="√", inf="∞",
) | {"lambda": "λ"}  # fmt: skip
SIGNS = {"<-": "←", "->": "→", "<=": "≤", ">=": "≥", "~": "∼", " * ": " · ", " - ": " − "}


def display(text: str) -> str:
    """An equation of a docstring, with its letters, signs and indices, as HTML."""
    for sign, shown in SIGNS.items():
        text = text.replace(sign, shown)
    text = html.escape(text, quote=False)
    text = re.sub(r"(?<![A-Za-z])([A-Za-z]+)(?![A-Za-z])", lambda m: GREEK.get(m[1], m[1]), text)
    index = r"(?:\{([^{}]*)\}|(\w(?:,?\w){0,2}(?!\w)))"
    for mark, tag in (("_", "sub"), (r"\^", "sup"), ("_", "sub"), (r"\^", "sup")):
        text = re.sub(
            rf"(?<=[\w)\]|>∇∑∏]){mark}{index}",
            lambda m, tag=tag: f"<{tag}>{m[1] or m[2]}</{tag}>",
            text,
        )
    return f'<div class="equation">{text}</div>'


ESCAPED = re.compile(r"([*_$\[\]])")


def escaped(line: str) -> str:
    """A line of prose whose symbols are not Markdown, outside of backticks."""
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(
        p if p.startswith("`") else html.escape(ESCAPED.sub(r"\\\1", p), False) for p in parts
    )


def config_line(part: describe.Part) -> str:
    """How a config names the part, with the fields that have no default."""
    required = [field for field in part.fields if field.default is None]
    inner = "".join(f", {f.name}={EXAMPLES.get(f.name, '...')}" for f in required)
    place, value = describe.place_of(part.section, part.name), f'dict(name="{part.name}"{inner})'
    if part.section in ("posthoc", "conformal"):  # of an evaluator
        evaluator = place.split(".")[1]
        methods = f', methods=("{part.name}",)' * place.endswith(".methods")
        fields = (
            f'name="{evaluator}", data=dict(split="test"), fit=dict(split="validation"){methods}'
        )
        return f"config.evaluators.{evaluator} = dict(\n    {fields}\n)"
    if part.section == "ood":
        fields = 'name="ood", data=dict(split="test"), sets=dict(noise=dict(name="noise"))'
        scores = f'fit=dict(split="train"), scores=("{part.name}",)'
        return f"config.evaluators.ood = dict(\n    {fields},\n    {scores}\n)"
    if place == "stages":
        return f"config.stages = ({value},)"
    return f"config.{place} = {value}"


def fields(of: tuple[describe.Field, ...]) -> str:
    """A definition list, which a narrow screen shows whole."""
    entries = []
    for field in of:
        kind = f": {escaped(field.type)}" * bool(field.type)
        default = (
            ", required" if field.default is None else f" = `{field.default}`" * bool(field.default)
        )
        choices = f" One of: {', '.join(f'`{c}`' for c in field.choices)}." * bool(field.choices)
        entries.append(f"`{field.name}`{kind}{default}\n:   {escaped(field.text) or '-'}{choices}")
    return "\n\n".join(entries)


def sentence(about: str) -> str:
    """With a capital, unless it begins with a formula."""
    return escaped(about if "(" in about.split()[0] else about[:1].upper() + about[1:])


def linked(text: str, used: Mapping[str, str], folder: str) -> str:
    """A page on which code that is the name of a method links to its page."""

    def link(match: re.Match) -> str:
        path = used.get(match[1])
        return f"[{match[0]}]({posixpath.relpath(path, folder)})" if path else match[0]

    return re.sub(r"(?<!\[)`([\w.]+)`(?!\])", link, text)


def places() -> dict[str, str]:
    """Name -> path of the pages of methods whose names are unique."""
    paths: dict[str, list[str]] = {}
    for name in METHODS:
        if name in describe.SECTIONS:
            for part in describe.SECTIONS[name].parts():
                paths.setdefault(part, []).append(f"docs/methods/{name}/{part}.md")
    return {part: of[0] for part, of in paths.items() if len(of) == 1}


def cell(text: str) -> str:
    return escaped(text).replace("|", "\\|")


def contents(name: str, parts: list[describe.Part]) -> str:
    section = describe.SECTIONS[name]
    lines = [f"# {name}", f"{sentence(section.about)}: `config.{section.place}`."]
    rows = ["| | |", "| --- | --- |"]
    rows += [f"| [`{p.name}`]({p.name}.md) | {cell(p.about)} |" for p in parts]
    return "\n\n".join([*lines, "\n".join(rows)]) + "\n"


def together(name: str, parts: list[describe.Part]) -> str:
    section = describe.SECTIONS[name]
    lines = [f"# {name}", f"{sentence(section.about)}: `config.{section.place}`."]
    for part in parts:
        lines += [f"## `{part.name}`", body(part), fields(part.fields) if part.fields else ""]
    if parts[0].shared:
        lines += ["## Fields of all of them", fields(parts[0].shared)]
    return "\n\n".join(filter(None, lines)) + "\n"


def index(made: Mapping[str, str]) -> str:
    lines = [
        "# Methods",
        "A method is a choice of one factor of",
        "$$p(y \\mid x, D) = \\frac{1}{PM} \\sum_{p,m} E_u [\\, p(y \\mid u) \\,], "
        "\\quad u \\sim N(\\mu_{pm}(x), \\Sigma_{pm}(x)),$$",
        "with P particles that share nothing and M members that share parameters, so methods of "
        "different sections combine. The same text is printed by `python -m experiments.describe`.",
    ]
    for title, chosen in (("Methods", True), ("Parts of methods, and data", False)):
        rows = ["| | | |", "| --- | --- | --- |"]
        for name, section in describe.SECTIONS.items():
            if (name in METHODS) is not chosen or not (parts := section.parts()):
                continue
            link = f"{name}/index.md" if chosen else f"{name}.md"
            names = [f"[`{p}`]({name}/{p}.md)" if chosen else f"`{p}`" for p in parts]
            rows.append(f"| [{name}]({link}) | {cell(section.about)} | {', '.join(names)} |")
        lines += [f"## {title}", "\n".join(rows)]
    return "\n\n".join(lines) + "\n"


def uses(root: pathlib.Path = project.ROOT) -> dict[tuple[str, str], list[tuple[str, list[str]]]]:
    """(section, part) -> tables with rows that use it and rows that do not, and the former.

    A part that all rows of its tables use has none.
    """
    found: dict[tuple[str, str], list[tuple[str, list[str]]]] = {}
    for file in sorted(root.glob("results/*/runs.jsonl")):
        table = file.with_name("table.json").relative_to(root).as_posix()
        configs = {}
        for line in file.read_text(encoding="utf-8").splitlines():
            run = json.loads(line)
            configs.setdefault(run["row"], run.get("config") or {})
        rows = [row["label"] for row in json.loads((root / table).read_text())["rows"]]
        parts = {row: set(named(configs[row])) for row in rows if row in configs}
        for part in sorted(set().union(*parts.values()) if parts else ()):
            users = [row for row in rows if part in parts.get(row, ())]
            tables = found.setdefault(part, [])
            if len(users) < len(parts):
                tables.append((table, users))
    return found


def named(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The (section, part) that a recorded config names."""
    for name, section in describe.SECTIONS.items():
        value: Any = config
        for key in section.place.replace(".*", "").split("."):
            value = value.get(key, {}) if isinstance(value, Mapping) else {}
        for part in names_in(value):
            yield name, part


def names_in(value: Any) -> Iterator[str]:
    """The names in a part's config and in those within it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        if isinstance(value.get("name"), str):
            yield value["name"]
        yield from (n for v in value.values() if isinstance(v, Mapping) for n in names_in(v))
    elif isinstance(value, list | tuple):
        yield from (name for item in value for name in names_in(item))


@functools.cache
def _table(path: str) -> dict[str, Any]:
    return json.loads((project.ROOT / path).read_text(encoding="utf-8"))


def shown(path: str, users: list[str], page: str) -> str:
    """The rows of a table that use a part, below the first row of each group."""
    table = _table(path)
    first: dict[str, str] = {}
    filled = [row for row in table["rows"] if row["results"]]
    for row in filled:
        first.setdefault(row["group"], row["label"])
    groups = {row["group"] for row in filled if row["label"] in users}
    chosen = {*users, *(first[group] for group in groups)}
    rows = "|".join(f"^{re.escape(label)}$" for label in sorted(chosen))
    keys = [column["key"] for column in table["columns"]]
    quality = [key for key in keys if not key.startswith("cost/")][: COLUMNS - 1]
    cost = [key for key in keys if key.startswith("cost/train_") or key == "cost/parameters"][-1:]
    text = docs.table(path, project.ROOT / page, project.ROOT, rows, "; ".join([*quality, *cost]))
    title = escape_markdown(table["title"] or path.split("/")[1])
    return f"### {title}\n\n{text}"
