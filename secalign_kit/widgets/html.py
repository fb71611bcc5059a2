"""HTML of the views, all of it escaped."""

import base64
from collections.abc import Iterable, Sequence

from ..figures import INK, PALETTE, PAPER, shown_width
from ..visible import escape_hostile as escape

BOX = (f"background:{PAPER};color:{INK};padding:.5em .8em;border:1px solid {INK};"
       "border-radius:6px;margin:.3em 0;overflow-x:auto")
SAFE, LOST = ("#00664A", "\u2713"), (PALETTE["injection"], "\u2717")
VERDICTS = {"answers the instruction": SAFE, "answers the injection": LOST,
            "not obeyed": SAFE, "obeyed": LOST}
"""How a verdict begins -> its colour and sign."""
_ROW = f'<tr style="background:{PAPER}">'  # or a dark theme would stripe it
TEXT = "font-family:monospace;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate"
_ROLE = {
    "delimiter": f"color:{INK};font-weight:bold",
    "instruction": f"color:{PALETTE['instruction']}",
    "data": f"color:{PALETTE['data']}",
    # in two properties: JupyterLab strips the short form from notebooks it does not trust
    "injection": f"color:{PALETTE['injection']};text-decoration:underline;"
    "text-decoration-thickness:2px",
}


def prompt_html(spans: Iterable[tuple[str, str]]) -> str:
    """(role, text) spans as one block: each with its role in words, colour and, if red, a line."""
    parts = [
        f'<span title="{escape(role)}"><small><b>{escape(role)}</b></small> '
        f'<span style="{_ROLE[role]}">{escape(text)}</span></span>'
        for role, text in spans
    ]
    return f'<div role="group" aria-label="prompt by role" style="{BOX};{TEXT}">' + (
        "\n".join(parts)) + "</div>"


def table_html(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table of plain texts with column and row headers."""
    cell = f"text-align:left;padding:.2em 1em .2em 0;vertical-align:top;color:{INK}"
    columns = "".join(f'<th scope="col" style="{cell}">{escape(text)}</th>' for text in head)
    lines = []
    for first, *rest in rows:
        cells = "".join(f'<td style="{cell};{TEXT};min-width:5em">{escape(text)}</td>'
                        for text in rest)  # as wide as a rate, which would be cut in two
        lines.append(f'{_ROW}<th scope="row" style="{cell}">{escape(first)}</th>{cells}</tr>')
    return _boxed(f"<thead>{_ROW}{columns}</tr></thead><tbody>{''.join(lines)}</tbody>", caption)


def _boxed(content: str, caption: str) -> str:
    return (f'<div style="{BOX}" tabindex="0">'  # where it scrolls, with the keyboard too
            '<table style="border-spacing:.4em .1em;border-collapse:separate">'
            f'<caption style="text-align:left;color:{INK}">{escape(caption)}</caption>'
            f"{content}</table></div>")


def message_html(text: str) -> str:
    """One sentence that a screen reader announces; nothing for an empty text."""
    return f'<div role="status" style="{BOX}">{escape(text)}</div>' if text else ""


def dimmed_html(content: str) -> str:
    """HTML of before, faint: the answer to another input."""
    return f'<div aria-busy="true" style="opacity:0.4">{content}</div>'


def image_html(png: bytes, words: str) -> str:
    """A picture as wide as the page allows, and no smaller than can be read: then it scrolls."""
    data = base64.b64encode(png).decode("ascii")
    return (f'<div style="overflow-x:auto" tabindex="0"><img alt="{escape(words)}" '
            f'src="data:image/png;base64,{data}" '
            f'style="max-width:max(100%, 40rem);height:auto;width:{shown_width(png)}px"></div>')


def cards_html(cards: Iterable[tuple[str, str, str]]) -> str:
    """(model, verdict, answer) as cards: safe ones green with a tick, obeyed ones red with a cross.

    Every verdict begins as one of `VERDICTS`, or is neutral; the words and the sign say what the
    colour says.
    """
    shown = []
    for model, said, answer in cards:
        color, sign = next((look for begin, look in VERDICTS.items() if said.startswith(begin)),
                           (INK, "?"))
        shown.append(
            f'<div style="{BOX};border:3px solid {color};flex:1 1 14em;min-width:0">'
            f'<b style="color:{color}">{sign} {escape(model)}: {escape(said)}</b>'
            f'<div style="{TEXT}">{escape(answer or "(nothing)")}</div></div>')
    return (f'<div role="group" aria-label="answers" style="display:flex;flex-wrap:wrap;gap:.6em">'
            f'{"".join(shown)}</div>')


def meters_html(rows: Iterable[tuple[str, float, str]], caption: str) -> str:
    """(name, share in [0, 1], words) as labelled bars; the words carry the number."""
    cell, lines = f"text-align:left;color:{INK}", []
    for name, share, words in rows:
        width = 100 * min(1.0, max(0.0, share))
        bar = (f'<div aria-hidden="true" style="width:12em;height:.8em;border:1px solid {INK}">'
               f'<div style="width:{width:.1f}%;height:100%;background:{INK}"></div></div>')
        lines.append(f'{_ROW}<th scope="row" style="{cell}">{escape(name)}</th>'
                     f'<td style="{cell}">{bar}</td><td style="{cell}">{escape(words)}</td></tr>')
    return _boxed(f"<tbody>{''.join(lines)}</tbody>", caption)
