"""What pictures share: text that can be drawn, axes in house style, and the way to a PNG."""

import io
from collections.abc import Sequence
from functools import lru_cache

import IPython.display
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from ..visible import one_line
from .palette import FAINT, INK, PAPER

WIDTH = 9.4  # inches of a picture made of text
FAMILY = ["DejaVu Sans Mono", "DejaVu Sans"]  # both come with matplotlib
POINTS = 10  # size of the monospaced text in points
COLUMN = 0.602 * POINTS / 72  # width of one character in inches
ROW = 0.215  # height of one line of text in inches
SHARP = 1.5  # pixels per pixel of an ordinary screen, at 110 of those an inch


@lru_cache(maxsize=1)
def _fonts():
    return [font_manager.get_font(font_manager.findfont(name)) for name in FAMILY]


def drawable(text: str, limit: int = 240) -> str:
    """Visible, drawable and at most `limit` characters long."""
    fonts, text = _fonts(), one_line(text)
    text = text if len(text) <= limit else text[: limit - 1] + "\u2026"
    drawn = {c for c in set(text) if any(font.get_char_index(ord(c)) for font in fonts)}
    return "".join(c if c in drawn else f"[U+{ord(c):04X}]" for c in text)


def png(fig: Figure, *below: Figure, dpi: float = 110 * SHARP) -> bytes:
    """The figure, or several one under the other, as a small PNG.

    It has 256 colours and no time stamp: equal figures give equal bytes.
    """
    parts = [_drawn(part, dpi) for part in (fig, *below)]
    size = max(part.width for part in parts), sum(part.height for part in parts)
    sheet = Image.new("RGB", size, PAPER)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    small = io.BytesIO()
    sheet.quantize(256, dither=Image.Dither.NONE).save(small, format="PNG", optimize=True)
    return small.getvalue()


def gif(figs: Sequence[Figure], milliseconds: int = 200, first: int = 2000) -> bytes:
    """The figures, of one size, as an animation that runs once and then shows the last one.

    Each stands for `milliseconds`, the first one for `first`, so that it can be read before
    anything moves. At most 64 colours; no time stamp: equal figures give equal bytes.
    """
    frames = [_drawn(fig, 110 * SHARP) for fig in figs]
    width, height = frames[0].size
    film = Image.new("RGB", (width, height * len(frames)))  # one palette for all: no flicker
    for number, frame in enumerate(frames):
        film.paste(frame, (0, height * number))
    film = film.quantize(64, dither=Image.Dither.NONE)
    made = [film.crop((0, top, width, top + height)) for top in range(0, film.height, height)]
    small = io.BytesIO()
    made[0].save(small, format="GIF", save_all=True, append_images=made[1:], optimize=True,
                 duration=[first, *[milliseconds] * (len(made) - 1)])
    return small.getvalue()


def image(fig: Figure, *below: Figure) -> IPython.display.Image:
    """The figure, or several, for a notebook: sharp on fine screens, with `words` as its text."""
    data = png(fig, *below)
    return IPython.display.Image(data, format="png", width=shown_width(data),
                                 metadata={"alt": words(fig, *below)})


def shown_width(data: bytes) -> int:
    """How wide a PNG of `png` should be shown, in pixels of an ordinary screen."""
    return round(int.from_bytes(data[16:20], "big") / SHARP)


def words(*figs: Figure) -> str:
    """What pictures show, for those who do not see them: titles, axes, and what the legend names.

    A picture made of texts says its texts, which may be hostile: what HTML would read is replaced.
    """
    said = []
    for axes in (axes for fig in figs for axes in fig.axes):
        heads = (axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel())
        texts = [] if axes.get_title(loc="left") else [text.get_text() for text in axes.texts]
        said += [*filter(None, heads), *filter(None, texts)]
    names = [text.get_text() for fig in figs for legend in [*fig.legends, *(
        axes.get_legend() for axes in fig.axes)] if legend for text in legend.get_texts()]
    text = one_line("; ".join(dict.fromkeys([*said, *names])))
    return text.translate(str.maketrans("<>\"'&", "\u2039\u203a\u201d\u2019+"))


def _drawn(fig: Figure, dpi: float) -> Image.Image:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=dpi, facecolor=PAPER, metadata={"Software": None})
    return Image.open(buffer).convert("RGB")


def sheet(width: float, height: float, columns: int = 1, **options):
    """A figure in inches, and its axes (several side by side for several columns)."""
    fig = Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)
    return fig, fig.subplots(1, columns, **options)


def blank():
    """A figure whose data units are inches, y growing downwards; `close` gives it its height."""
    fig = Figure(facecolor=PAPER)
    axes = fig.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return fig, axes


def close(fig: Figure, axes, height: float) -> None:
    fig.set_size_inches(WIDTH, height)
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(height, 0)


def write(axes, x: float, y: float, text: str, size: float = 10.5, **style) -> None:
    """One line of text, its middle at height `y`; dollar signs in it are dollar signs."""
    style = {"color": INK, "va": "center", "parse_math": False} | style
    axes.text(x, y, text, fontsize=size, **style)


def dress(axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11, loc="left", weight="bold", color=INK)
    axes.set_xlabel(x, fontsize=9.5)
    axes.set_ylabel(y, fontsize=9.5)
    axes.tick_params(labelsize=8.5)
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def legend_below(fig: Figure, panels: Sequence, columns: int) -> None:
    """The legend of the panels under them, where it hides nothing; names stay text."""
    found = [axes.get_legend_handles_labels() for axes in panels]
    handles, labels = (sum(parts, []) for parts in zip(*found, strict=True))
    if not labels:
        return
    legend = fig.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center",
                        ncols=columns, handlelength=3)
    for text in legend.get_texts():
        text.set_parse_math(False)
