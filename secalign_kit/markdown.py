"""Tables and cards: one way to write each, as Markdown for files and as HTML for notebooks.

One datum: `table(["attack", "pairs"], [["naive", 90]])` is

    | attack | pairs |
    |---|---|
    | naive | 90 |
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .visible import escape_hostile, number, one_line


def table(head: Sequence, rows: Iterable[Sequence]) -> str:
    """A table without a line break at its end. No cell can break out of it; HTML is not escaped."""
    return "\n".join([_line(head), "|" + "---|" * len(head), *map(_line, rows)])


def _line(cells: Sequence) -> str:
    shown = (str(cell).replace("\n", " ").replace("|", "&#124;") for cell in cells)
    return "|" + "|".join(f" {cell} " if cell else " " for cell in shown) + "|"


@dataclass(frozen=True)
class Table:
    """Rows that a notebook shows as a table, all columns left-aligned.

    Each row is a mapping with the same keys, which are the head. Floats are written with two
    decimals; a text is made harmless, put in one line, and cut with "\u2026" at `limit` characters.
    """

    rows: Sequence[Mapping]
    limit: int = 80

    def _shown(self, value) -> str:
        text = one_line(number(value) if isinstance(value, float) else str(value))
        cut = isinstance(value, str) and len(text) > self.limit
        return text[: self.limit - 1] + "\u2026" if cut else text

    def __repr__(self) -> str:
        cells = [list(map(str, self.rows[0]))]
        cells += [[self._shown(value) for value in row.values()] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = (map(str.ljust, row, widths) for row in cells)
        return "\n".join("  ".join(line).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head = "".join(self._cell('th scope="col"', name) for name in self.rows[0])
        lines = []
        for first, *rest in (row.values() for row in self.rows):
            cells = [self._cell('th scope="row"', first), *(self._cell("td", x) for x in rest)]
            lines.append(f"<tr>{''.join(cells)}</tr>")
        return (f"<table><thead><tr>{head}</tr></thead>"
                f"<tbody>{''.join(lines)}</tbody></table>")

    def _cell(self, tag: str, value) -> str:
        style = "text-align:left;vertical-align:top"
        if not isinstance(value, str):  # a number and its interval stay on one line
            style += ";white-space:nowrap"
        text = escape_hostile(self._shown(value))
        return f'<{tag} style="{style}">{text}</{tag[:2]}>'


def card(title: str, *blocks: str, tags: Sequence[str] = ()) -> str:
    """A README.md of data: the Hub's tags, a title, and blocks (headings too) with space between.

    Empty blocks are left out.
    """
    front = "\n".join(["---", "tags:", *(f"- {tag}" for tag in tags), "---"]) if tags else ""
    return "\n\n".join(filter(None, (front, f"# {title}", *map(str.strip, blocks)))) + "\n"
