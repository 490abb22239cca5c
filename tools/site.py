"""The site of the documentation, for MkDocs: `make docs` (mkdocs.yml has the settings).

Pages are the Markdown files of the repository, at their own paths, so that their links lead to the
same places here and there, with the files that they link to. These are made when the site is built:

    docs/methods      a page for each method and for each section of other parts (tools/methods.py)
    docs/tutorials    scripts that are run, with what they print and draw (tools/tutorials.py)
    docs/api          the public names, from their docstrings
    docs/gallery.md   the figures of the results

Mathematics becomes MathML, which browsers draw without scripts or fonts.
"""

import html
import pathlib
import posixpath
import re
import sys
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # MkDocs loads this file by its path

import uncertainty  # noqa: E402
from tools import methods, tutorials  # noqa: E402

LINK = re.compile(r"\]\(([^)\s#:]+)(?:#[^)]*)?\)")
TUTORIAL = re.compile(r"(\]\([^)]*tutorials/\w+)\.py\)")  # on the site its page
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")
MATH = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
FUNCTION = re.compile(r"(<mi>(?:log|exp|max|min)</mi>)(?=<m(?:i|row|sub|sup|frac)>)")
START = [
    "README.md",
    ("Your own data", "docs/data.md"),
    ("Your own model", "docs/your_own_model.md"),
    ("Predictions of any model", "docs/predictions.md"),
    ("Choose a method", "docs/choose.md"),
]
GUIDE = [
    ("Programs", "docs/programs.md"),
    ("Configs", "docs/configs.md"),
    ("Sweeps", "docs/sweeps.md"),
    ("Post-hoc calibration, sets", "docs/posthoc.md"),
    ("Combining members", "docs/combining.md"),
    ("Out of distribution", "docs/ood.md"),
    ("Metrics", "docs/metrics.md"),
    ("Pretrained checkpoints", "docs/pretrained.md"),
    ("Self-supervision", "docs/self_supervision.md"),
]
DEVICES = [
    ("Devices", "docs/devices.md"),
    ("Launching", "docs/launch.md"),
    ("Compiling for a slice", "docs/compile.md"),
    ("Buckets", "docs/cloud.md"),
    ("Large ensembles", "docs/scaling.md"),
]
# Pages with links to the pages of methods.
NAMING = ["docs/choose.md", "docs/posthoc.md", "docs/combining.md", "docs/ood.md"]
PROJECT = [
    ("Contributing", "CONTRIBUTING.md"),
    ("Architecture", "ARCHITECTURE.md"),
    ("Changelog", "CHANGELOG.md"),
]
# Public modules whose names are not all in `uncertainty`.
MODULES = "build priors metrics layers optimisers posthoc conformal combining ood restore rules"


def committed() -> dict[str, pathlib.Path]:
    """Path -> file of the pages that are files."""
    files = [
        *(ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING", "CHANGELOG")),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "benchmarks/README.md",
        *ROOT.glob("results/*/table.md"),
    ]
    return {file.relative_to(ROOT).as_posix(): file for file in files}


def linked(path: str, text: str) -> Iterator[str]:
    """Paths of the files that a page links to."""
    for target in LINK.findall(text):
        place = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if (ROOT / place).is_file():
            yield place


def api() -> dict[str, str]:
    """Pages of the public names: path -> Markdown."""
    pages: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    for name in uncertainty.__all__:
        target = getattr(uncertainty, name)
        module = target.__module__.removeprefix("uncertainty.")
        groups.setdefault(module.split(".")[0], []).append(f"uncertainty.{module}.{name}")
    listed = [
        "# API\n",
        f"What `import uncertainty` has; `{'`, `'.join(MODULES.split())}` are modules.\n",
    ]
    for group, names in sorted(groups.items()):
        bodies = (f"::: {name}\n" for name in sorted(names, key=str.lower))
        pages[f"docs/api/{group}.md"] = "\n".join([f"# {group}\n", *bodies])
    for module in MODULES.split():
        path, files = ROOT / "uncertainty" / module, [f"uncertainty.{module}"]
        if path.is_dir():
            inner = sorted(path.rglob("*.py"))
            files += [
                ".".join(file.relative_to(ROOT).with_suffix("").parts)
                for file in inner
                if not file.stem.startswith("_")
            ]
        elif not path.with_suffix(".py").exists():
            continue
        options = "    options:\n      show_root_full_path: true\n      show_submodules: false\n"
        bodies = (f"::: {file}\n{options}" for file in files)
        pages[f"docs/api/{module}.md"] = "\n".join([f"# {module}\n", *bodies])
    listed += ["| | |", "| --- | --- |"]
    for path in sorted(pages):
        names = groups.get(path.split("/")[-1][:-3], [])
        shown = ", ".join(f"[`{name.rpartition('.')[2]}`][{name}]" for name in sorted(names))
        file = posixpath.basename(path)
        listed.append(f"| [{file[:-3]}]({file}) | {shown} |")
    pages["docs/api/index.md"] = "\n".join(listed)
    return pages


def gallery(pages: dict[str, pathlib.Path]) -> str:
    """The figures of the results' pages, each with a link to its page."""
    cells = []
    for path, file in sorted(pages.items()):
        if not path.startswith("docs/results/"):
            continue
        text = file.read_text(encoding="utf-8")
        title = text.partition("\n")[0].strip("# ")
        for alt, image in IMAGE.findall(text):
            place = posixpath.relpath(
                posixpath.normpath(posixpath.join(posixpath.dirname(path), image)), "docs"
            )
            page = posixpath.relpath(path, "docs")
            cells.append(
                f"<figure markdown>\n[![{alt}]({place})]({page})\n"
                f"<figcaption markdown>[{title}]({page}): {alt}</figcaption>\n</figure>"
            )
    return "\n\n".join(["# Gallery", '<div class="gallery" markdown>', *cells, "</div>"])


def titled(path: str, text: str) -> dict[str, str]:
    """An entry of the navigation."""
    heading = re.search(r"^# (.*)$", text, re.MULTILINE)
    return {heading[1].replace("`", "") if heading else path: path}


def navigation(pages: dict[str, str], generated: dict[str, str]) -> list[Any]:
    """The table of contents: only pages that exist."""

    def entries(items: list[Any]) -> list[Any]:
        pairs = [item if isinstance(item, tuple) else (None, item) for item in items]
        return [{title: at} if title else at for title, at in pairs if at in pages]

    def folder(name: str, first: tuple[str, ...] = ()) -> list[Any]:
        paths = sorted(p for p in pages if p.startswith(f"docs/{name}/"))
        paths.sort(key=lambda p: first.index(p) if p in first else len(first))
        return [titled(path, pages[path]) for path in paths]

    results = "docs/results/README.md"
    ordered = (results, *linked(results, pages[results]))
    listed = {item[1] for item in [*START[1:], *GUIDE, *DEVICES]}
    further = [
        titled(path, text)
        for path, text in sorted(pages.items())
        if re.fullmatch(r"docs/[\w-]+\.md", path) and path not in {*listed, "docs/gallery.md"}
    ]
    return [
        {"Start": entries(START)},
        {"Tutorials": [*folder("tutorials"), {"Gallery": "docs/gallery.md"}]},
        {"Guide": [*entries(GUIDE), *further]},
        {"TPU and GPU": entries(DEVICES)},
        {"Methods": methods.navigation(generated)},
        {
            "Results": [
                *folder("results", ordered),
                *entries([("Speed", "benchmarks/README.md")]),
            ]
        },
        {"API": folder("api", ("docs/api/index.md",))},
        {"Project": entries(PROJECT)},
    ]


def on_config(config: Any) -> Any:
    files = committed()
    generated = {**methods.pages(), **tutorials.pages(), **api(), "docs/gallery.md": gallery(files)}
    texts = {
        path: TUTORIAL.sub(r"\1.md)", file.read_text(encoding="utf-8"))
        for path, file in files.items()
    }
    texts |= generated
    at = methods.places()
    for path in NAMING:
        if path in texts:
            texts[path] = methods.linked(texts[path], at, posixpath.dirname(path))
    config.nav = navigation(texts, generated)
    config.extra["pages"] = texts
    config.extra["binary"] = tutorials.figures()
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    texts = config.extra["pages"]
    for path, text in texts.items():
        files.append(File.generated(config, path, content=text))
    others = {place for path, text in texts.items() for place in linked(path, text)} - set(texts)
    for place in sorted(others):
        files.append(File.generated(config, place, abs_src_path=str(ROOT / place)))
    for place, content in config.extra["binary"].items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_content(content: str, **_: Any) -> str:
    """With mathematics as MathML, figures that scroll, and no breaks where none belongs."""
    from latex2mathml.converter import convert

    def mathml(match: re.Match) -> str:
        block = match["tag"] == "div"
        tex = html.unescape(match["tex"]).strip()
        made = convert(tex, display="block" if block else "inline")
        made = FUNCTION.sub(r'\1<mspace width="0.17em" />', made)
        return f'<{match["tag"]} class="arithmatex">{made}</{match["tag"]}>'

    content = re.sub(r"<p>(<img [^>]*>)</p>", r'<div class="figure">\1</div>', content)
    content = re.sub(r" (?=[↑↓]</t[hd]>)", "\u00a0", content)
    content = re.sub(r"(?<!>)<code>(?=[^<]{1,24}</code>)", '<code class="short">', content)
    return MATH.sub(mathml, content)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """The logo leads to a file, not to a folder, so that it works from a disk."""
    home = posixpath.relpath("index.html", posixpath.dirname(page.url) or ".")
    return re.sub(
        r'<a href="[^"]*"(?= title="[^"]*" class="md-(?:header__button|nav__button) md-logo")',
        f'<a href="{home}"',
        output,
    )


def on_post_build(config: Any) -> None:
    """Without the page of missing pages, whose links are those of a server."""
    (pathlib.Path(config.site_dir) / "404.html").unlink(missing_ok=True)
