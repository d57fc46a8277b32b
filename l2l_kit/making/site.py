"""A static site of the executed lessons, by Sphinx: it needs no kernel, no network and no server.

Explorers answer from recordings: what they show for chosen values of their controls is computed beforehand.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from l2l_kit.extras import needs
from l2l_kit.making.work import parallel_map
from l2l_kit.paths import NOTEBOOKS
from l2l_kit.storage import write_atomically

HERE, ROOT = Path(__file__).parent, NOTEBOOKS.parent
WIDGET, PLOTLY = "application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json"
SHOWN = ("notebooks/diagrams", "docs/figures", "data/results/figures")
"""Folders of pictures to which the lessons and the README refer."""
TEACHING = "docs/teaching.md"
SCRIPTS = {"plotly": "package_data/plotly.min.js", "sphinx-mathjax-offline": "static/mathjax/tex-svg.js"}
"""What other packages bring, which pages must not fetch from elsewhere."""
ASSETS = "../_static"  # as a lesson sees them: the pages lie as the notebooks do


def write_site(
    lessons: Sequence[Path], folder: Path, records: Path, *, again: bool = False, repository: str = "", jobs: int = 1
) -> Path:
    """Write the site of these lessons into a folder, and return its first page.

    Args:
        lessons: executed notebooks.
        folder: where the site goes.
        records: where recordings are kept; those that are missing there are made.
        again: make all of them.
        repository: address of the kit's repository, for links that open a lesson on Binder or Colab; empty for none.
        jobs: how many recordings are made at once.

    Raises:
        FileNotFoundError: if this is not the kit's repository, but an installed package.
    """
    with needs("site"):
        from sphinx.application import Sphinx

    if not (ROOT / "README.md").exists():
        raise FileNotFoundError(f"{ROOT}: the site is made in the kit's repository.")
    notebooks = {lesson: json.loads(lesson.read_text(encoding="utf-8")) for lesson in lessons}
    found = {lesson: _explorers(notebook["cells"], lesson, records) for lesson, notebook in notebooks.items()}
    for lesson in lessons if again else ():
        for earlier in records.glob(f"{lesson.stem}-*"):
            earlier.unlink()
    made = [each for explorers in found.values() for each in explorers.values()]
    missing = [(code, record) for code, record in made if not record.exists() and _recordable(code)]
    parallel_map(make_recording, missing, jobs)
    with TemporaryDirectory(prefix="l2l-site-") as temporary:
        source = Path(temporary, "source")
        _write_assets(source / "assets")
        for lesson, notebook in notebooks.items():
            for place, (code, record) in found[lesson].items():
                (*_, output) = (each for each in notebook["cells"][place]["outputs"] if WIDGET in each.get("data", {}))
                html = _explorer(output["data"], record, source / "assets", predicted="widgets.Prediction" in code)
                output["data"] = {"text/html": html}
            for cell in notebook["cells"]:
                if cell["metadata"].get("jupyter", {}).get("outputs_hidden"):  # until the reader has predicted them
                    cell["metadata"].setdefault("tags", []).append("hide-output")
                for output in cell.get("outputs", []):
                    if PLOTLY in output.get("data", {}):
                        output["data"] = {"text/html": _figure(output["data"][PLOTLY])}
            write_atomically(source / "notebooks" / lesson.name, json.dumps(notebook).encode())
        for pictures in SHOWN:
            shutil.copytree(ROOT / pictures, source / pictures, ignore=shutil.ignore_patterns("*.py", "*.md"))
        write_atomically(source / "index.md", _first_page(lessons, repository).encode())
        write_atomically(source / TEACHING, (ROOT / TEACHING).read_bytes())
        settings, cache = _settings(source, repository), Path(temporary, "cache")
        Sphinx(source, None, folder, cache, "html", settings, status=None, freshenv=True, parallel=jobs).build()
    for lesson in lessons:  # to download; Sphinx has copied what it was given
        shutil.copy(lesson, folder / "_sources" / "notebooks" / lesson.name)
    return folder / "index.html"


def _recordable(code: str) -> bool:
    """Whether code makes an explorer that says what is to be recorded: to run the others may take minutes."""
    from l2l_kit import widgets

    return any(getattr(widgets, name).recorded for name in re.findall(r"widgets\.([A-Z]\w+)", code))


def make_recording(code: str, path: Path) -> None:
    """Run code whose last line is an explorer, and write what it shows."""
    from l2l_kit.widgets.recording import record

    *lines, last = ast.parse(code).body
    space: dict[str, Any] = {}
    exec(compile(ast.Module(lines, []), str(path), "exec"), space)
    write_atomically(path, record(eval(ast.unparse(last), space)))


def needed(cells: Iterable[str]) -> str:
    """The last line of code, and the statements before it that bind the names that it uses."""
    *before, last = ast.parse("\n".join(cells)).body
    kept, wanted = [last], _wanted(last)
    for statement in reversed(before):
        if _bound(statement) & wanted:
            kept, wanted = [statement, *kept], wanted | _wanted(statement)
    return "\n".join(map(ast.unparse, kept))


def _bound(node: ast.AST) -> set[str]:
    """The names that code defines, imports or assigns to, also to a part of them."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.alias(name=name, asname=other):
            return {other or name.partition(".")[0]}
        case ast.Attribute(value=whole, ctx=ast.Store()) | ast.Subscript(value=whole, ctx=ast.Store()):
            return _wanted(whole)
        case ast.comprehension() | ast.Lambda():
            return set()
    return set().union(*map(_bound, ast.iter_child_nodes(node)))


def _wanted(node: ast.AST) -> set[str]:
    """The names that code uses and does not bind by itself, as loops and functions do."""
    if isinstance(node, ast.Name):
        return {node.id} if isinstance(node.ctx, ast.Load) else set()
    match node:
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            own = set().union(*(_bound(each.target) for each in node.generators))
        case ast.For():
            own = _bound(node.target)
        case ast.FunctionDef() | ast.Lambda():
            own = {each.arg for each in ast.walk(node) if isinstance(each, ast.arg)}
            own = own.union(*map(_bound, node.body if isinstance(node.body, list) else []))
        case _:
            own = set()
    return set().union(*map(_wanted, ast.iter_child_nodes(node))) - own


def _explorers(cells: Sequence[Mapping[str, Any]], lesson: Path, records: Path) -> dict[int, tuple[str, Path]]:
    """By the number of their cell, the code that makes each explorer of a lesson, and the file of its recording."""
    found, code = {}, list[str]()
    for place, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            code.append("".join(cell["source"]))
            if any(WIDGET in output.get("data", {}) for output in cell["outputs"]):
                made = needed(code)
                found[place] = made, records / f"{lesson.stem}-{sha256(made.encode()).hexdigest()[:16]}.json.gz"
    return found


def _explorer(data: Mapping[str, Any], record: Path, assets: Path, *, predicted: bool) -> str:
    """An explorer as HTML: its picture, which the recording replaces where there is one."""
    picture = f'<img alt="What the explorer shows at first." src="data:image/png;base64,{data["image/png"].strip()}">'
    if not record.exists():
        words = "Say what you expect, then open this." if predicted else "What you get when you run this lesson."
        return f'<details class="l2l-still"{"" if predicted else " open"}><summary>{words}</summary>{picture}</details>'
    name = record.name.removesuffix(".json.gz")
    content = b64encode(record.read_bytes()).decode()
    call = f'globalThis.l2lRecordings = {{...globalThis.l2lRecordings, "{name}": "{content}"}};'
    write_atomically(assets / f"{name}.js", call.encode())
    note = "Recorded for these values of the controls. Run this lesson to choose others."
    script = f'<script src="{ASSETS}/{name}.js"></script>'
    return f'<div class="l2l-recorded" data-recording="{name}">{picture}</div><p class="l2l-note">{note}</p>{script}'


def _figure(figure: Mapping[str, Any]) -> str:
    content = json.dumps(figure).replace("<", "\\u003c")
    return f'<div class="l2l-figure"><script type="application/json">{content}</script></div>'


def _write_assets(folder: Path) -> None:
    """The scripts and styles of the explorers and of this site, plotly's and MathJax's."""
    from l2l_kit.widgets import explorer

    for ending in ("js", "css"):
        both = explorer.HERE / f"explorer.{ending}", HERE / f"site.{ending}"
        text = "\n".join(file.read_text(encoding="utf-8") for file in both)
        if ending == "js":  # a module would not be loaded from a folder
            text = f"{{{text.replace('export default {', 'const explorer = {')}}}"
        write_atomically(folder / f"l2l.{ending}", text.encode())
    for package, script in SCRIPTS.items():
        write_atomically(folder / script.rpartition("/")[2], (files(package) / script).read_bytes())


def _first_page(lessons: Sequence[Path], repository: str) -> str:
    """What the README says of the kit and its lessons, and how to run them."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^#+ (.+)\n([\s\S]*?)(?=^#|\Z)", readme, re.MULTILINE))
    run = "These pages need no kernel. To run and change a lesson, get the kit, and give the command `make lab`."
    if repository:
        run += (
            " The rocket above a lesson opens it on Binder, which installs the kit, or on Colab, where this first cell "
            f'installs it:\n\n    %pip install "l2l_kit[lessons] @ git+{repository}"\n'
        )
    pages = [*(f"notebooks/{lesson.stem}" for lesson in lessons), TEACHING.removesuffix(".md")]
    listed = "\n".join(["```{toctree}", ":hidden:", "", *pages, "```"])
    return f"# l2l_kit\n{parts['l2l_kit']}\n## Lessons\n{parts['Lessons']}\n## To run them\n\n{run}\n\n{listed}\n"


def _settings(source: Path, repository: str) -> dict[str, Any]:
    """Sphinx's settings."""
    theme: dict[str, Any] = {"show_toc_level": 2, "use_fullscreen_button": False, "navbar_persistent": []}
    theme |= {"footer_content_items": []}
    if repository:
        hubs = {"binderhub_url": "https://mybinder.org", "colab_url": "https://colab.research.google.com"}
        theme |= {"repository_url": repository, "repository_branch": "main", "use_repository_button": True}
        theme |= {"launch_buttons": {**hubs, "notebook_interface": "jupyterlab"}}
    return {
        "project": "l2l_kit",
        "html_title": "Learning to learn",
        "language": "en",
        "extensions": ["myst_nb"],
        "nb_execution_mode": "off",
        "nb_merge_streams": True,
        "suppress_warnings": ["myst.xref_missing"],  # anchors in HTML, which work
        "myst_enable_extensions": ["dollarmath", "amsmath"],
        "html_theme": "sphinx_book_theme",
        "html_theme_options": theme,
        "html_static_path": [str(source / "assets")],
        "html_css_files": ["l2l.css"],
        "html_js_files": [(name, {"defer": "defer"}) for name in ("plotly.min.js", "l2l.js")],
        "mathjax_path": "tex-svg.js",
        "html_context": {"default_mode": "auto"},
        "html_show_copyright": False,
        "html_show_search_summary": False,  # for which a page in a folder may not read the others
    }
