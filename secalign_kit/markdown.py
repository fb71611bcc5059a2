"""Markdown: one way to write a table, and one way to write a card.

One datum: `table(["attack", "pairs"], [["naive", 90]])` is

    | attack | pairs |
    |---|---|
    | naive | 90 |
"""

from collections.abc import Iterable, Sequence


def table(head: Sequence, rows: Iterable[Sequence]) -> str:
    """A table without a line break at its end. No cell can break out of it; HTML is not escaped."""
    return "\n".join([_line(head), "|" + "---|" * len(head), *map(_line, rows)])


def _line(cells: Sequence) -> str:
    shown = (str(cell).replace("\n", " ").replace("|", "&#124;") for cell in cells)
    return "|" + "|".join(f" {cell} " if cell else " " for cell in shown) + "|"


def card(title: str, *blocks: str, tags: Sequence[str] = ()) -> str:
    """A README.md of data: the Hub's tags, a title, and blocks (headings too) with space between.

    Empty blocks are left out.
    """
    front = "\n".join(["---", "tags:", *(f"- {tag}" for tag in tags), "---"]) if tags else ""
    return "\n\n".join(filter(None, (front, f"# {title}", *map(str.strip, blocks)))) + "\n"
