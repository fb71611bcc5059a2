"""The course as a static site: `python notebooks/pages.py FOLDER`, or `make site` into build/site.

Pages of the committed notebooks, outputs and all, and of the texts in `docs`. They can be read
without a kernel, without a script and offline. Only formulas are set by MathJax from its usual
address; without it they are shown as they are written.
"""

import argparse
import html
import re
import shutil
from pathlib import Path

import nbformat
from nbconvert.filters import markdown2html
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from secalign_kit.samples import write_text

ROOT = Path(__file__).resolve().parent.parent
MATHJAX = """<script>MathJax = {tex: {inlineMath: [["$", "$"]]}};</script>
<script async src="https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-mml-chtml.js"></script>"""
STYLE = """
:root { --ink: #1a1a1a; --paper: #ffffff; --soft: #f4f4f2; --line: #c9c9c9; --quiet: #4d4d4d;
 --link: #0b5394; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --paper: #16181b; --soft: #22262b;
 --line: #4a4f57; --quiet: #b8b8b8; --link: #8ec5ff; } }
body { font: 16px/1.6 system-ui, sans-serif; color: var(--ink); background: var(--paper);
 max-width: 50rem; margin: 0 auto; padding: 1rem 1rem 4rem; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; } h2 { margin-top: 2.5rem; } a { color: var(--link); }
.anchor-link { display: none; } nav { border-bottom: 1px solid var(--line); }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 6px; margin: .6rem 0;
 padding: .5rem .8rem; overflow-x: auto; font: 13.5px/1.5 ui-monospace, monospace; }
.output pre { background: none; white-space: pre-wrap; overflow-wrap: anywhere; }
.k, .kn, .kc, .ow { font-weight: 600; } .c1 { color: var(--quiet); }
code { font-family: ui-monospace, monospace; font-size: .92em; }
.scroll { display: block; overflow-x: auto; } .scroll td { overflow-wrap: break-word !important; }
table { border-collapse: collapse; border: 0; margin: .6rem 0; font-size: .92em; }
.dataframe thead th { text-align: left !important; }
th, td { border: 0; border-bottom: 1px solid var(--line); padding: .3rem .8rem .3rem 0;
 text-align: left; vertical-align: top; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
@media (max-width: 45rem) { .scroll img { max-width: 40rem; } }
summary { cursor: pointer; color: var(--link); } blockquote { color: var(--quiet); }
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style>{math}</head>
<body><nav aria-label="site"><p><a href="{up}index.html">SecAlign Kit</a></p></nav>
<main>{body}</main></body></html>
"""


def page(title: str, body: str, up: str = "") -> str:
    """A whole page; `up` leads from it to the index's folder."""
    math = MATHJAX if "$$" in body else ""
    return PAGE.format(title=html.escape(title), style=STYLE, math=math, body=body, up=up)


def words(source: str) -> str:
    """Markdown as HTML; links lead to pages of the site, and code and tables can be scrolled."""
    made = re.sub(r'href="(?!\w+:)([^"#]+)\.(?:ipynb|md)(#[^"]*)?"',
                  lambda found: f'href="{found[1]}.html{found[2] or ""}"', markdown2html(source))
    return scrollable(made)


def scrollable(made: str) -> str:
    """What may be wider than a small screen can be scrolled, with the keyboard too."""
    made = made.replace("<table", '<div class="scroll" tabindex="0"><table')
    made = re.sub('<img (?![^>]*src="http)[^>]*>',
                  r'<span class="scroll" tabindex="0">\g<0></span>', made)
    made = re.sub(r"(% \[[\d.]+), ([\d.]+\])", r"\1,&nbsp;\2", made)  # an interval stays whole
    return made.replace("</table>", "</table></div>").replace("<pre>", '<pre tabindex="0">')


def code(source: str) -> str:
    return scrollable(highlight(source, PythonLexer(), HtmlFormatter(nowrap=False)))


def output(found) -> str:
    """An output as HTML: of several forms, the one that is best to read."""
    data = found.get("data", {})
    if "image/png" in data:
        about = found.get("metadata", {}).get("image/png", {})
        alt, width = html.escape(about.get("alt", "A figure")), about.get("width", "")
        return scrollable(f'<img alt="{alt}" width="{width}" '
                          f'src="data:image/png;base64,{data["image/png"]}">')
    if "text/html" in data:
        return scrollable(data["text/html"])
    if "text/markdown" in data:
        return words(data["text/markdown"])
    text = found.get("text") or data.get("text/plain", "")
    return f'<pre tabindex="0">{html.escape(text.rstrip())}</pre>'


def cell(found) -> str:
    """A cell as HTML; what a notebook folds is folded here."""
    if found.cell_type != "code":
        return words(found.source)
    hidden, source = found.metadata.get("jupyter", {}), code(found.source)
    if hidden.get("source_hidden"):
        source = f"<details><summary>Set-up</summary>{source}</details>"
    shown = "".join(map(output, found.outputs))
    if shown and hidden.get("outputs_hidden"):
        shown = f"<details><summary>Show the answer</summary>{shown}</details>"
    return f'{source}<div class="output">{shown}</div>'


def title(text: str) -> str:
    """The first heading of a Markdown text."""
    found = re.search(r"^# (.+)$", text, re.M)
    return found[1] if found else "SecAlign Kit"


def build(folder: Path) -> list[Path]:
    """Writes the site and returns its pages; what the folder held is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    made = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        made[f"notebooks/{path.stem}.html"] = page(
            title(notebook.cells[0].source), "".join(map(cell, notebook.cells)), "../")
    for path in [ROOT / "notebooks/README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        made[f"{path.parent.name}/{path.stem}.html"] = page(title(text), words(text), "../")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = ["- [The course](notebooks/README.md)"]
    for path in sorted((ROOT / "docs").glob("*.md")):
        pages.append(f"- [{title(path.read_text(encoding='utf-8'))}](docs/{path.name})")
    made["index.html"] = page("SecAlign Kit", words("\n".join(
        [readme, "", "## All pages", "", *pages])))
    for name, content in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / name, _without_dead_links(content, Path(name).parent, set(made)))
    for picture in (ROOT / "docs").iterdir():
        if picture.suffix in (".png", ".gif"):
            shutil.copy(picture, folder / "docs")
    return [folder / name for name in made]


def _without_dead_links(content: str, here: Path, names: set[str]) -> str:
    """Links to files that are no page of the site become their words."""
    def kept(found) -> str:
        parts = []
        for part in (here / found[1].partition("#")[0]).parts:
            parts = parts[:-1] if part == ".." else [*parts, part]
        return found[0] if "/".join(parts) in names else found[2]

    return re.sub(r'<a href="(?!\w+:|#)([^"]+)"[^>]*>(.*?)</a>', kept, content, flags=re.S)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "build" / "site")
    made = build(parser.parse_args().folder)
    print(f"{len(made)} pages: {made[-1]}")
