"""What every view is made of: named parts, a bar, messages in place, a static twin."""

import base64
import contextlib
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace

import ipywidgets
from IPython.display import clear_output, display

from .. import figures
from .html import dimmed_html, message_html

WIDGET = "application/vnd.jupyter.widget-view+json"
SCRIPT = "application/javascript"
STYLE = """
.widget-html-content { min-width: 0; }
.jp-RenderedHTMLCommon.jp-RenderedMarkdown a:any-link { text-decoration: underline; }
[data-jp-theme-light=false] .widget-dropdown > select { background-image: url("data:image/svg+xml,\
<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 18 18'>\
<path fill='white' d='M4 6h10l-5 6z'/></svg>"); }
"""
"""On a narrow page, wide tables scroll in their own box; links differ from words by more than
colour; arrows can be seen in the dark."""
NAMES = """
const id = 'secalign-style';
if (!document.getElementById(id))
  document.head.append(Object.assign(document.createElement('style'), {id, textContent: `STYLE`}));
let left = 30;  // seconds in which a front end may still be drawing
const name = () => {
  for (const slider of document.querySelectorAll('[role=slider]:not([aria-label])')) {
    const label = slider.closest('.widget-inline-hbox')?.querySelector('.widget-label');
    if (label?.textContent) slider.setAttribute('aria-label', label.textContent);
  }
  for (const button of document.querySelectorAll('.jupyter-button:not([aria-label])')) {
    const icon = button.querySelector('[class*=fa-]');  // of a player, such as fa-stop
    if (icon && !button.textContent.trim())
      button.setAttribute('aria-label', icon.className.replace(/.*fa-(\\w+).*/, '$1'));
  }
  if (left--) setTimeout(name, 1000);
};
name();
""".replace("STYLE", STYLE)
"""Gives sliders and the buttons of a player names: ipywidgets' own have none for screen readers.
And gives the page its `STYLE`, once."""

Progress = Callable[[Sequence], Iterable]
"""Goes over a sequence and says how far it is: `iter`, `tqdm`, or a view's own bar."""


class View(ipywidgets.VBox):
    """A widget with a title, its children by name in `parts`, and a static `twin`: MIME type ->
    content, and for a picture its words as "alt".

    One output holds both: front ends with a kernel show the widget, all others the twin.
    `without_widgets` leaves a notebook the twins alone, to be committed.
    """

    def __init__(self, title: str, children: Sequence, parts: SimpleNamespace,
                 twin: Callable[[], dict]):
        super().__init__(children=children)
        self.add_class(f"secalign-{title.lower().replace(' ', '-')}")
        self.title, self.parts, self.twin = title, parts, twin

    def mimebundle(self) -> dict:
        """MIME type -> content: the widget and its twin."""
        return self._bundle(self.twin())

    def _bundle(self, twin: dict) -> dict:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {"text/plain": f"{self.title}: a widget; it needs a running kernel", WIDGET: view,
                **{kind: content for kind, content in twin.items() if kind != "alt"}}

    def _ipython_display_(self, **kwargs) -> None:
        twin = self.twin()
        named = {"image/png": {"alt": twin["alt"]}} if "alt" in twin else {}
        display(self._bundle(twin), raw=True, metadata=named)
        display({SCRIPT: NAMES}, raw=True)


def with_progress(function: Callable, *args, **options):
    """`function(*args, progress=a bar, **options)`; the bar is shown below the cell and removed."""
    bar = _bar("visible")
    display(bar)
    try:
        return function(*args, progress=_over(bar), **options)
    finally:
        bar.close()
        clear_output()


def without_widgets(notebook: dict) -> dict:
    """The notebook (nbformat 4) with the twins alone; it is changed in place and returned.

    Widgets without a twin, such as a bar, leave nothing behind.
    """
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if _without_widget(output)]
    return notebook


def _without_widget(output: dict) -> bool:
    """Takes the widget out of an output; whether something is left to see."""
    data = output.get("data", {})
    if SCRIPT in data:
        return False
    return data.pop(WIDGET, None) is None or not {"image/png", "text/html"}.isdisjoint(data)


def _bar(visibility: str = "hidden"):
    return ipywidgets.IntProgress(description="working", layout={"visibility": visibility})


def _over(bar) -> Progress:
    def progress(sequence):
        bar.max, bar.value = max(1, len(sequence)), 0
        for thing in sequence:
            yield thing
            bar.value += 1

    return progress


@contextlib.contextmanager
def answering(parts: SimpleNamespace, *shown: str):
    """Shows the bar; an error becomes a sentence in place, and `shown` parts become empty.

    While it works, what `shown` parts say is dimmed: it answers the input before. An error that is
    no ValueError is raised again, for whoever reads the log.
    """
    parts.progress.layout.visibility, parts.message.value = "visible", ""
    for part in (getattr(parts, name) for name in shown):
        part.value = part.value and dimmed_html(part.value)
    try:
        yield _over(parts.progress)
    except Exception as error:
        for name in shown:  # numbers of the last input must not stand beside the new one
            getattr(parts, name).value = ""
        known = isinstance(error, ValueError)
        said = str(error) if known else f"This failed with {type(error).__name__}: {error}"
        parts.message.value = message_html(said)
        if not known:
            raise
    finally:
        parts.progress.layout.visibility = "hidden"


def common() -> dict:
    return {"message": ipywidgets.HTML(), "progress": _bar()}


def text_field(description: str, value: str, rows: int = 2):
    return ipywidgets.Textarea(value=value, description=description, rows=rows,
                               continuous_update=False, layout={"width": "auto"},
                               style={"description_width": "8em"})


def wide(kind: type, description: str, **options):
    return kind(description=description, style={"description_width": "8em"},
                layout={"width": "28em", "max_width": "100%"}, **options)


def row(*children):
    """Widgets side by side, or below each other where the page is narrow."""
    return ipywidgets.HBox(children, layout={"flex_flow": "row wrap", "align_items": "center"})


def dashed(names: Iterable[str]) -> list[tuple[str, str]]:
    return [(name.replace("_", "-"), name) for name in names]


def image(*figs) -> dict:
    return {"image/png": base64.b64encode(figures.png(*figs)).decode("ascii"),
            "alt": figures.words(*figs)}
