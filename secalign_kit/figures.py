"""Measurements become figures; the palette of the whole kit lives here.

One datum: `{"insecure": {"asr": {"naive": {"value": 0.9, "n": 200, "low": 0.85, "high": 0.93}}},
"secure": ...}` becomes grouped bars with Wilson intervals. Every function takes data and returns a
`matplotlib.figure.Figure`; nothing is shown, saved or kept in global state. `png(fig)` gives bytes.

One colour per meaning, everywhere (after Okabe and Ito 2008, readable with colour-blindness), and
never colour alone: hatches, markers, line styles, underlines or words say the same thing.

Limits: texts are drawn in DejaVu Sans Mono, which has no Chinese or emoji; characters without a
glyph, and invisible ones, are written as their code point, `[U+202E]`. Long texts are cut with an
ellipsis in figures (never in data).
"""

import io
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import matplotlib
from matplotlib import colors, font_manager
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.transforms import Bbox
from PIL import Image

from . import evaluation, injections
from .samples import DINOSAUR_HOST, DINOSAUR_PAYLOAD

PALETTE = {
    "instruction": "#0072B2",  # blue: who may command
    "data": "#595959",  # grey: to be read, not obeyed
    "injection": "#C1121F",  # red, always underlined or boxed
    "chosen": "#009E73",  # green, solid, circles
    "rejected": "#A6417F",  # purple, dashed, squares
    "insecure": "#E69F00",  # orange, hatched ///
    "secure": "#56B4E9",  # sky blue, hatched ...
}
HATCH = {"insecure": "///", "secure": "..."}
MARKER = {"chosen": "o", "rejected": "s", "insecure": "^", "secure": "D"}
LINE = {"chosen": "-", "rejected": "--"}
INK, PAPER, FAINT = "#1A1A1A", "#FFFFFF", "#D9D9D9"
STYLE = (  # runs beside each other, in colours that have no other meaning: colour, line, marker
    (INK, "-", "o"),
    ("#8C510A", "--", "^"),
    ("#5E3C99", ":", "D"),
)
_ROLES = {  # how the name of a model or a curve begins -> the role whose colour it takes
    "insecure": "insecure", "undefended": "insecure", "secure": "secure", "secalign": "secure",
    "asr": "injection", "attack success": "injection",
    "utility": "instruction", "clean utility": "instruction",
}  # fmt: skip
_ROLE_MARKER = MARKER | {"injection": "s", "instruction": "o"}
NEUTRAL = "#BDBDBD"  # fills the markers of all that have no role; their outline is INK


# --- Text in figures ------------------------------------------------------------------------------
DELIMITERS = ("<instruction_delimiter>", "<data_delimiter>", "<response_delimiter>")

_FAMILY = ["DejaVu Sans Mono", "DejaVu Sans"]  # both come with matplotlib
_POINTS = 10  # size of the monospaced text in points
_COLUMN = 0.602 * _POINTS / 72  # width of one character in inches
_ROW = 0.215  # height of one line of text in inches


def visible(text: str) -> str:
    """`injections.visible` in one line: a newline becomes U+21B5.

    (The control picture U+240A is missing from many fonts.) The result is not HTML-escaped.
    """
    return injections.visible(text).replace("\n", "\u21b5")


@lru_cache(maxsize=1)
def _fonts():
    return [font_manager.get_font(font_manager.findfont(name)) for name in _FAMILY]


def _drawable(text: str, limit: int = 240) -> str:
    """Visible, drawable and at most `limit` characters long."""
    fonts, text = _fonts(), visible(text)
    text = text if len(text) <= limit else text[: limit - 1] + "\u2026"
    drawn = {c for c in set(text) if any(font.get_char_index(ord(c)) for font in fonts)}
    return "".join(c if c in drawn else f"[U+{ord(c):04X}]" for c in text)


def png(fig: Figure, *below: Figure, dpi: int = 110) -> bytes:
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


def _drawn(fig: Figure, dpi: int) -> Image.Image:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=dpi, facecolor=PAPER, metadata={"Software": None})
    return Image.open(buffer).convert("RGB")


# --- The founding diagram ------------------------------------------------------------------------


def diagram(measured: Mapping | None = None) -> Figure:
    """The founding diagram with measured log-probabilities.

    `measured` keys, all optional: `chosen_before`, `chosen_after`, `rejected_before`,
    `rejected_after` in nats per response; `insecure_answer`, `secure_answer`; and, to show another
    pair than the dinosaurs, `instruction`, `data` (without the injection), `injection`, `chosen`,
    `rejected`, `delimiters` (three). What is missing is drawn as "not measured"; other keys are
    ignored.
    """
    given = _diagram_defaults() | dict(measured or {})
    if len(given["delimiters"]) != 3:
        raise ValueError(
            f"diagram: {len(given['delimiters'])} delimiters, need three: instruction, data, "
            "response."
        )
    width = 9.4
    fig, axes = _blank(width)
    y = _model_box(axes, 0.5, width, "insecure", given.get("insecure_answer"))
    y = _arrow(axes, y, width, "fine-tune with preference optimization")
    y = _pair_box(axes, y, width, given)
    y = _arrow(axes, y, width, "")
    y = _model_box(axes, y, width, "secure", given.get("secure_answer"))
    axes.text(
        0.25, 0.27, "From an insecure to a secure model: who may instruct",
        fontsize=12.5, weight="bold", color=INK, va="center",
    )  # fmt: skip
    _close(fig, axes, width, y + 0.15)
    return fig


def _diagram_defaults() -> dict:
    return {
        "instruction": DINOSAUR_HOST.instruction,
        "data": DINOSAUR_HOST.data,
        "injection": DINOSAUR_PAYLOAD.request,
        "chosen": DINOSAUR_HOST.answer,
        "rejected": DINOSAUR_PAYLOAD.answer,
        "delimiters": DELIMITERS,
    }


def _blank(width: float):
    """A figure whose data units are inches, y growing downwards."""
    fig = Figure(figsize=(width, 4), facecolor=PAPER)
    axes = fig.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return fig, axes


def _close(fig: Figure, axes, width: float, height: float) -> None:
    fig.set_size_inches(width, height)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def _frame(axes, x, y, width, height, edge, face=PAPER, **style):
    box = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.08",
        edgecolor=edge, facecolor=face, linewidth=1.8, **style,
    )  # fmt: skip
    axes.add_patch(box)


def _model_box(axes, y: float, width: float, which: str, answer: str | None) -> float:
    left, inner = 0.25, width - 0.5
    shown = "not measured" if answer is None else (_drawable(answer) or "(nothing)")
    lines = _wrap([("answers: ", "label"), (shown, "answer")], int((inner - 0.9) / _COLUMN))
    height = 0.5 + _ROW * len(lines)
    _frame(axes, left, y, inner, height, PALETTE[which], colors.to_rgba(PALETTE[which], 0.13))
    # a hatched stripe: the same hatch as this model's bars in every other figure
    stripe = Rectangle(
        (left + 0.08, y + 0.09), 0.3, height - 0.18, facecolor=PALETTE[which],
        edgecolor=INK, hatch=HATCH[which], linewidth=0.8,
    )  # fmt: skip
    axes.add_patch(stripe)
    name = "instruct" if which == "insecure" else "SecAlign"
    axes.text(
        left + 0.52, y + 0.22, f"{_article(which)} {which} high-functioning {name} model",
        fontsize=11.5, weight="bold", color=INK, va="center",
    )  # fmt: skip
    _draw_lines(axes, lines, left + 0.52, y + 0.48)
    return y + height


def _article(word: str) -> str:
    return "An" if word[0] in "aeiou" else "A"


def _arrow(axes, y: float, width: float, label: str) -> float:
    height, x = 0.42, width / 2 - 1.9
    axes.annotate(
        "", xy=(x, y + height), xytext=(x, y),
        arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.8, "shrinkA": 1},
    )  # fmt: skip
    axes.text(x + 0.18, y + height / 2, label, fontsize=10.5, color=INK, va="center")
    return y + height


def _pair_box(axes, y: float, width: float, given: Mapping) -> float:
    """Prompt, chosen and rejected; returns the y below."""
    left, label_width = 0.25, 1.0
    x, inner = left + label_width + 0.12, width - 0.5 - label_width - 0.3
    lines = _prompt_lines(given, int((inner - 0.2) / _COLUMN))
    top = y
    y += 0.14
    prompt_height = _ROW * len(lines) + 0.16
    _frame(axes, x, y, inner, prompt_height, FAINT)
    _label(axes, left, y + 0.19, "given input", INK)
    _draw_lines(axes, lines, x + 0.1, y + 0.19)
    y += prompt_height + 0.1
    axes.text(
        x + inner, y + 0.02, "injection: boxed and underlined, inside the data", fontsize=8.5,
        color=PALETTE["injection"], ha="right", va="center",
    )  # fmt: skip
    y += 0.16
    for role, verb in (("chosen", "prefer"), ("rejected", "over")):
        y = _response_box(axes, left, x, y, inner, role, verb, given)
    _frame(axes, left, top, width - 0.5, y - top, INK, "none")
    return y


def _prompt_lines(given: Mapping, columns: int) -> list[list[tuple[int, str, str]]]:
    marks = [_drawable(d.strip() or d) for d in given["delimiters"]]
    rows = [
        [(marks[0] + " ", "delimiter"), (_drawable(given["instruction"]), "instruction")],
        [
            (marks[1] + " ", "delimiter"),
            (_drawable(given["data"]) + " ", "data"),
            (_drawable(given["injection"]), "injection"),
        ],
        [(marks[2], "delimiter")],
    ]
    return [line for runs in rows for line in _wrap(runs, columns)]


def _response_box(axes, left, x, y, inner, role, verb, given) -> float:
    lines = _wrap([(_drawable(given[role]), "answer")], int((inner - 0.2) / _COLUMN))
    height = _ROW * (len(lines) + 1) + 0.18
    style = {"linestyle": LINE[role]}
    _frame(axes, x, y, inner, height, PALETTE[role], colors.to_rgba(PALETTE[role], 0.1), **style)
    _label(axes, left, y + 0.19, verb, PALETTE[role])
    _label(axes, left, y + 0.19 + _ROW, f"({role})", PALETTE[role], size=8.5)
    _draw_lines(axes, lines, x + 0.1, y + 0.19)
    axes.text(
        x + 0.1, y + 0.19 + _ROW * len(lines), _change(given, role),
        fontsize=10, color=INK, va="center", weight="bold",
    )  # fmt: skip
    return y + height + 0.14


def _change(given: Mapping, role: str) -> str:
    pair = [given.get(f"{role}_{when}") for when in ("before", "after")]
    if None in pair:
        return "log p: not measured"
    before, after = map(float, pair)
    step = after - before
    arrow = "\u25b2" if step > 0 else "\u25bc" if step < 0 else "="
    text = f"log p  {before:.1f}  \u2192  {after:.1f} nats   {arrow} {step:+.1f}"
    return text.replace("-", "\u2212")


def _label(axes, x, y, text, color, size=10.5) -> None:
    axes.text(x + 0.12, y, text, fontsize=size, weight="bold", color=color, va="center")


def _wrap(runs: Iterable[tuple[str, str]], columns: int) -> list[list[tuple[int, str, str]]]:
    """Runs of (text, role) as lines of (column, text, role), broken at spaces, else anywhere."""
    lines, column = [[]], 0
    for text, role in runs:
        for word in _words(text, columns):
            if column + len(word.rstrip()) > columns and column:
                lines.append([])
                column = 0
            lines[-1].append((column, word, role))
            column += len(word)
    return lines


def _words(text: str, columns: int) -> list[str]:
    words = []
    for word in text.split(" "):
        pieces = [word[i : i + columns] for i in range(0, len(word), columns)] or [""]
        words += pieces[:-1] + [pieces[-1] + " "]
    words[-1] = words[-1][:-1]
    return [word for word in words if word]


def _draw_lines(axes, lines, x: float, y: float) -> None:
    """Monospaced lines; `x` left edge, `y` middle of the first line, in inches."""
    style = {
        "delimiter": {"color": INK, "weight": "bold"},
        "label": {"color": INK, "style": "italic"},
    }
    for row, line in enumerate(lines):
        middle = y + row * _ROW
        for column, text, role in line:
            axes.text(
                x + column * _COLUMN, middle, text, family=_FAMILY, va="center",
                fontsize=_POINTS, parse_math=False,
                **style.get(role, {"color": PALETTE.get(role, INK)}),
            )  # fmt: skip
        _mark_injection(axes, [part for part in line if part[2] == "injection"], x, middle)


def _mark_injection(axes, parts, x: float, middle: float) -> None:
    if not parts:
        return
    start = x + parts[0][0] * _COLUMN - 0.03
    end = x + (parts[-1][0] + len(parts[-1][1].rstrip())) * _COLUMN + 0.03
    red, top = PALETTE["injection"], middle - _ROW * 0.43
    box = Rectangle(
        (start, top), end - start, _ROW * 0.86, facecolor=colors.to_rgba(red, 0.1),
        edgecolor=red, linewidth=0.9, zorder=1.5,
    )  # fmt: skip
    axes.add_patch(box)
    axes.plot([start, end], [top + _ROW * 0.86] * 2, color=red, linewidth=2.4)


# --- Curves, shifts, rates -----------------------------------------------------------------------


def training_curves(metrics: Sequence[Mapping], log2: bool = True, window: int = 20) -> Figure:
    """Loss, margin and both log-probabilities against the training step.

    `metrics`: rows with `step`, `loss`, `margin` (beta times nats; both of one batch, so faint,
    under the mean of the last `window` rows), `chosen_logprob` and `rejected_logprob` (nats per
    response, mean of the probe). Absent or None values are skipped. `log2` marks where the DPO loss
    begins: pass False for another loss or an added term; a first loss that is not log 2 also drops
    the mark. Raises ValueError for no rows.
    """
    if not metrics:
        raise ValueError("training_curves: no rows in metrics; log at least one step.")
    fig = Figure(figsize=(10, 3.7), layout="constrained", facecolor=PAPER)
    loss, margin, logp = fig.subplots(1, 3)
    _batches(loss, metrics, "loss", window)
    losses = [m["loss"] for m in metrics if m.get("loss") is not None]
    if log2 and _begins_at_log2(metrics):
        loss.axhline(math.log(2), color=INK, linestyle=":", linewidth=1.4)
        loss.annotate(
            "log 2: before training", (1, math.log(2)), xycoords=("axes fraction", "data"),
            xytext=(-3, 3), textcoords="offset points", ha="right", fontsize=8, color=INK,
        )  # fmt: skip
    _dress(loss, "Loss", "training step", "training loss")
    loss.margins(y=0.12)
    if min(losses, default=0) >= 0:
        loss.set_ylim(bottom=0)
    _batches(margin, metrics, "margin", window)
    margin.axhline(0, color=INK, linestyle=":", linewidth=1.4)
    _dress(margin, "Margin: chosen over rejected", "training step", "margin (beta \u00d7 nats)")
    for role in ("chosen", "rejected"):
        _curve(logp, metrics, f"{role}_logprob", PALETTE[role], LINE[role], MARKER[role], role)
    _dress(logp, "What moved", "training step", "log p (nats per response)")
    _legend_below(fig, [loss if loss.get_legend_handles_labels()[1] else margin, logp], 4)
    return fig


def _begins_at_log2(metrics: Sequence[Mapping]) -> bool:
    """False if the loss of the very first step, before any update, is another number."""
    first = next((m for m in metrics if m.get("loss") is not None), None)
    return first is None or first["step"] > 1 or abs(first["loss"] - math.log(2)) < 0.02


def _batches(axes, metrics: Sequence[Mapping], key: str, window: int) -> None:
    """Numbers of single batches, faint, and the mean of the last `window` of them."""
    rows = [m for m in metrics if m.get(key) is not None]
    if len(rows) <= 2 * window:
        _curve(axes, rows, key, INK, "-", "")
        return
    values = [m[key] for m in rows]
    axes.plot([m["step"] for m in rows], values, color=INK, alpha=0.3, linewidth=0.7,
              label="loss, margin: single batch")
    recent = [values[max(0, k + 1 - window) : k + 1] for k in range(len(rows))]
    means = [{"step": m["step"], key: sum(v) / len(v)} for m, v in zip(rows, recent, strict=True)]
    _curve(axes, means, key, INK, "-", "", f"mean of the last {window} batches")


def _curve(axes, metrics, key, color, line, marker, label=None) -> None:
    rows = [(m["step"], m[key]) for m in metrics if m.get(key) is not None]
    if not rows:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", color=INK)
        return
    steps, values = zip(*rows, strict=True)
    every = max(1, len(rows) // 9)
    marker = marker or ("." if len(rows) < 3 else None)  # a lone point draws no line
    axes.plot(
        steps, values, color=color, linestyle=line, marker=marker, markevery=every,
        markersize=5, linewidth=1.8, label=label,
    )  # fmt: skip


def _dress(axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11, loc="left", weight="bold", color=INK)
    axes.set_xlabel(x, fontsize=9.5)
    axes.set_ylabel(y, fontsize=9.5)
    axes.tick_params(labelsize=8.5)
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


_QUADRANTS = (  # chosen rose?, rejected rose?, words, marker
    (True, False, "chosen up, rejected down: intended", "o"),
    (False, False, "both down", "v"),
    (True, True, "both up", "^"),
    (False, True, "chosen down, rejected up: wrong way", "X"),
)


def shift_scatter(table) -> Figure:
    """How far training moved the two responses of every pair.

    `table`: a DataFrame with `id`, `chosen_before`, `chosen_after`, `rejected_before`,
    `rejected_after` (nats per response). The marker says in which quadrant a pair lies; the legend
    counts them. Below the diagonal the margin grew. "up" means a change above zero. Raises
    ValueError for missing columns, no rows, or values that are not finite.
    """
    chosen, rejected = _shifts(table)
    fig = Figure(figsize=(7, 5.8), layout="constrained", facecolor=PAPER)
    axes = fig.subplots()
    for up, rejected_up, words, marker in _QUADRANTS:
        here = ((chosen > 0) == up) & ((rejected > 0) == rejected_up)
        axes.scatter(
            chosen[here], rejected[here], marker=marker, s=30, color=INK, edgecolor=PAPER,
            linewidth=0.5, alpha=0.65, label=f"{words} ({int(here.sum())})",
        )  # fmt: skip
    _quadrant_limits(axes, chosen, rejected)
    _dress(
        axes, f"The shift of {len(chosen)} pairs", "change of log p(chosen) (nats per response)",
        "change of log p(rejected) (nats per response)",
    )  # fmt: skip
    _legend_below(fig, [axes], 2)
    return fig


def _legend_below(fig: Figure, panels: Sequence, columns: int) -> None:
    """The legend of the panels under them, where it hides nothing; names stay text."""
    pairs = [pair for axes in panels
             for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    if not pairs:
        return
    handles, labels = zip(*pairs, strict=True)
    legend = fig.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center",
                        ncols=columns, handlelength=3)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _shifts(table):
    names = ("chosen_before", "chosen_after", "rejected_before", "rejected_after")
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise ValueError(f"shift_scatter: columns {missing} are missing; score before and after.")
    if not len(table):
        raise ValueError("shift_scatter: the table has no rows; score at least one pair.")
    values = {name: table[name].to_numpy(dtype=float) for name in names}
    for name, column in values.items():
        bad = [i for i, value in enumerate(column) if not math.isfinite(value)]
        if bad:
            raise ValueError(f"shift_scatter: row {bad[0]}, {name} is not finite; drop that pair.")
    return (
        values["chosen_after"] - values["chosen_before"],
        values["rejected_after"] - values["rejected_before"],
    )


def _quadrant_limits(axes, x, y) -> None:
    """Both zeros inside, with a strip of every quadrant, and the line of equal shifts."""
    for values, setter in ((x, axes.set_xlim), (y, axes.set_ylim)):
        low, high = min(0.0, values.min()), max(0.0, values.max())
        pad = 0.12 * max(high - low, 1.0)
        setter(low - pad, high + pad)
    axes.axhline(0, color=INK, linewidth=1)
    axes.axvline(0, color=INK, linewidth=1)
    axes.axline((0, 0), slope=1, color=INK, linestyle=":", linewidth=1.2,
                label="equal shifts; below, the margin grew")


def token_strip(
    tokens: Sequence[str], before: Sequence[float], after: Sequence[float], title: str = ""
) -> Figure:
    """One box per token, coloured and labelled by the change of its log-probability (nats).

    `before`, `after`: log p of each token in nats, as long as `tokens`. Brown and a down-triangle
    mean less likely after training, teal and an up-triangle more likely.
    """
    changes = _token_changes(tokens, before, after)
    limit = max(0.5, *(abs(change) for change in changes))
    shade = ScalarMappable(colors.Normalize(-limit, limit), matplotlib.colormaps["BrBG"])
    width, x, y = 9.4, 0.25, 0.62
    fig, axes = _blank(width)
    for token, change in zip(tokens, changes, strict=True):
        shown = _drawable(_edge_spaces(token), 60) or "\u2205"
        size = max(len(shown), 6) * _COLUMN + 0.14
        if x + size > width - 0.25 and x > 0.25:
            x, y = 0.25, y + 0.62
        _token_box(axes, x, y, size, shown, change, shade.to_rgba(change))
        x += size + 0.04
    _strip_heading(axes, title, sum(changes))
    height = y + 0.66 + 0.62
    _close(fig, axes, width, height)
    _strip_scale(fig, shade, height)
    return fig


def _token_changes(tokens, before, after) -> list[float]:
    if not len(tokens) or not len(tokens) == len(before) == len(after):
        raise ValueError(
            f"token_strip: {len(tokens)} tokens, {len(before)} before, {len(after)} after; "
            "pass one number per token in each."
        )
    changes = [float(b) - float(a) for a, b in zip(before, after, strict=True)]
    bad = [i for i, change in enumerate(changes) if not math.isfinite(change)]
    if bad:
        raise ValueError(f"token_strip: token {bad[0]} has no finite change; leave it out.")
    return changes


def _strip_heading(axes, title: str, total: float) -> None:
    axes.text(
        0.25, 0.25, _drawable(title or "Change per token", 90), fontsize=11.5, weight="bold",
        color=INK, va="center", parse_math=False,
    )  # fmt: skip
    note = f"after \u2212 before, in nats; sum {total:+.2f}; \u25b2 likelier, \u25bc less likely; "
    note += "\u00b7 is a space, \u21b5 a newline"
    axes.text(0.25, 0.48, note.replace("-", "\u2212"), fontsize=8.5, color=INK, va="center")


def _edge_spaces(token: str) -> str:
    """Leading and trailing spaces as middle dots: they belong to the token."""
    start, end = len(token) - len(token.lstrip(" ")), len(token.rstrip(" "))
    if start >= end:
        return "\u00b7" * len(token)
    return "\u00b7" * start + token[start:end] + "\u00b7" * (len(token) - end)


def _token_box(axes, x, y, size, shown, change, face) -> None:
    axes.add_patch(Rectangle((x, y), size, 0.56, facecolor=face, edgecolor=INK, linewidth=0.7))
    red, green, blue = face[:3]
    ink = INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else PAPER
    sign = "\u25b2" if change > 0.005 else "\u25bc" if change < -0.005 else ""
    value = f"{sign}{round(change, 2) + 0.0:+.2f}".replace("-", "\u2212")
    for dy, text, points in ((0.18, shown, _POINTS), (0.4, value, 8)):
        axes.text(
            x + size / 2, y + dy, text, family=_FAMILY, fontsize=points, color=ink,
            ha="center", va="center", parse_math=False,
        )  # fmt: skip


def _strip_scale(fig: Figure, shade: ScalarMappable, height: float) -> None:
    bar = fig.add_axes((0.03, 0.4 / height, 0.35, 0.12 / height))
    fig.colorbar(shade, cax=bar, orientation="horizontal")
    bar.tick_params(labelsize=7.5, length=2)
    bar.set_xlabel("change of log p (nats per token)", fontsize=8, labelpad=1)


def asr_bars(summary: Mapping) -> Figure:
    """Attack success rate per attack, insecure beside secure, with 95% Wilson intervals and n.

    `summary`: `{"insecure": {"asr": {attack: rate}, "clean_utility": rate}, "secure": ...}`; a rate
    has `value`, `n`, `low`, `high` (fractions), as a mapping or an object. `clean_utility` may be
    absent; where it is there, it stands apart on the right. What was measured on one model only
    shows "not measured" for the other. Raises ValueError for no attack.
    """
    asr = {which: summary.get(which, {}).get("asr", {}) for which in ("insecure", "secure")}
    attacks = list(dict.fromkeys([*asr["insecure"], *asr["secure"]]))
    if not attacks:
        raise ValueError("asr_bars: no attack in summary['insecure' or 'secure']['asr'].")
    groups = [(k, a, {w: asr[w].get(a) for w in asr}) for k, a in enumerate(attacks)]
    clean = {which: summary.get(which, {}).get("clean_utility") for which in asr}
    split = len(attacks) - 0.2  # where utility, for which high is good, is set apart
    if any(rate is not None for rate in clean.values()):
        groups.append((len(attacks) + 0.6, "clean utility", clean))
    fig = Figure(figsize=(max(6.6, 1.45 * len(groups) + 1.6), 4), layout="constrained",
                 facecolor=PAPER)
    axes = fig.subplots()
    for which, offset in (("insecure", -0.2), ("secure", 0.2)):
        for place, _, rates in groups:
            _bar(axes, place + offset, rates[which], which)
    labels = [(_drawable(name, 40) + _n(r.values(), "\n")).replace("_", " ")
              for _, name, r in groups]
    axes.set_xticks([place for place, _, _ in groups], labels, parse_math=False)
    axes.set_ylim(0, 118)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlim(-0.6, groups[-1][0] + 0.6)
    title, x = "Attack success rate (lower is safer)", "attack"
    y = "attacks obeyed (% of samples)"
    if len(groups) > len(attacks):
        title, x, y = "Security and utility", "attack, and without attack", "% of samples"
        axes.axvline(split, color=INK, linewidth=1.2)
        for place, words in (((len(attacks) - 1) / 2, "attacks obeyed:\nlower is better"),
                             (groups[-1][0], "right answers:\nhigher is better")):
            axes.text(place, 135, words, ha="center", va="top", fontsize=9, color=INK)
        axes.set_ylim(0, 136)
    _dress(axes, title, x, y)
    axes.grid(False, axis="x")
    keys = [Rectangle((0, 0), 1, 1, label=w, **_bar_style(w)) for w in ("insecure", "secure")]
    axes.legend(handles=keys, frameon=False, ncols=2, loc="lower right", fontsize=9.5,
                bbox_to_anchor=(1, 1), borderaxespad=0.1)
    return fig


def _bar_style(which: str) -> dict:
    return {"facecolor": PALETTE[which], "edgecolor": INK, "hatch": HATCH[which], "linewidth": 0.8}


def _bar(axes, x: float, rate, which: str) -> None:
    if rate is None:
        axes.text(x, 2, "not measured", rotation=90, ha="center", va="bottom", fontsize=8)
        return
    value, low, high = _percent(rate)
    axes.bar(x, value, 0.36, **_bar_style(which))
    axes.errorbar(x, value, yerr=_whisker(rate), color=INK, capsize=4, linewidth=1.4)
    axes.text(x, max(value, high) + 1.5, f"{value:.0f}%", ha="center", va="bottom", fontsize=9)


def field(rate, name: str) -> float:
    """One field of a rate that may be a mapping (read from json) or an object."""
    return rate[name] if isinstance(rate, Mapping) else getattr(rate, name)


def _percent(rate) -> tuple[float, float, float]:
    """(value, low, high) in percent; a plain number has no interval."""
    if isinstance(rate, int | float):
        return (100.0 * rate,) * 3
    return tuple(100 * field(rate, name) for name in ("value", "low", "high"))


def _whisker(rate) -> list[list[float]]:
    value, low, high = _percent(rate)
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def _n(rates: Iterable, before: str = "; ") -> str:
    """How many trials stand behind the rates: `before` and "n = 40" or "n = 40 / 50", or ""."""
    known = [r.get("n") if isinstance(r, Mapping) else getattr(r, "n", None) for r in rates]
    known = list(dict.fromkeys(n for n in known if n is not None))
    if len(known) > 3:
        known = [f"{min(known)} to {max(known)}"]
    return f"{before}n = {' / '.join(map(str, known))}" if known else ""


def loss_curve(betas: Sequence[float] = (0.1,)) -> Figure:
    """The DPO loss and its pull against the shift of a pair, for each beta (at most three).

    The shift (nats) is how much more chosen than rejected gained; the loss is
    -log sigmoid(beta * shift) in nats, the pull beta * sigmoid(-beta * shift) is the size of its
    gradient by either log-probability. Raises ValueError for no, more than three, or bad betas.
    """
    if not 0 < len(betas) <= len(STYLE) or min(betas) <= 0:
        raise ValueError(f"loss_curve: betas {tuple(betas)}; give one to three numbers above 0.")
    fig = Figure(figsize=(9, 3.4), layout="constrained", facecolor=PAPER)
    loss, pull = fig.subplots(1, 2)
    shifts = [x / 2 for x in range(-40, 81)]
    for beta, (color, line, marker) in zip(betas, STYLE, strict=False):
        margins = [beta * shift for shift in shifts]
        style = {"color": color, "linestyle": line, "marker": marker, "markevery": 20,
                 "markersize": 5, "linewidth": 1.8, "label": f"beta {beta:g}"}
        loss.plot(shifts, [max(-m, 0) + math.log1p(math.exp(-abs(m))) for m in margins], **style)
        pull.plot(shifts, [beta * (0.5 - 0.5 * math.tanh(m / 2)) for m in margins], **style)
    loss.plot([0], [math.log(2)], marker="o", color=INK, markersize=6, linestyle="")
    loss.annotate("log 2: nothing learned yet", (0, math.log(2)), xytext=(8, 12), fontsize=8.5,
                  textcoords="offset points", color=INK)
    x = "shift of the pair (nats): gain of chosen \u2212 gain of rejected"
    _dress(loss, "Loss", x, "DPO loss (nats)")
    _dress(pull, "Pull on each log-prob", x, "beta \u00d7 sigmoid(\u2212margin)")
    for axes in (loss, pull):
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.legend(frameon=False, fontsize=9, handlelength=4)
    return fig


# --- Training runs -------------------------------------------------------------------------------


def compare_training(runs: Mapping[str, Sequence[Mapping]]) -> Figure:
    """Margin, log p(chosen) and log p(rejected) of several runs (at most three) over the steps.

    `runs`: name to rows with `step`, `chosen_logprob`, `rejected_logprob` (mean nats per response
    on the probe pairs); rows without them are skipped. The margin is drawn before beta multiplies
    it, from these means, so that it has no noise of batches. Raises ValueError for no run, more
    than three, or a run without log-probs.
    """
    if not 0 < len(runs) <= len(STYLE):
        raise ValueError(f"compare_training: {len(runs)} runs; pass one to three.")
    fig = Figure(figsize=(10, 3.6), layout="constrained", facecolor=PAPER)
    panels = fig.subplots(1, 3)
    keys = ("gain", "chosen_logprob", "rejected_logprob")
    for (name, metrics), style in zip(runs.items(), STYLE, strict=False):
        rows = _probed(name, metrics)
        for axes, key in zip(panels, keys, strict=True):
            _curve(axes, rows, key, *style, _drawable(name, 40))
    panels[0].axhline(0, color=INK, linestyle=":", linewidth=1.2)
    _dress(panels[0], "Margin: chosen over rejected", "training step", "margin / beta (nats)")
    for axes, role in zip(panels[1:], ("chosen", "rejected"), strict=True):
        _dress(axes, f"log p({role})", "training step", "log p (nats per response)")
    low = min(axes.get_ylim()[0] for axes in panels[1:])
    for axes in panels[1:]:  # one scale, so that the two panels can be compared by eye
        axes.set_ylim(low, 0.5)
    handles, labels = panels[0].get_legend_handles_labels()
    fig.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center",
               ncols=len(runs), handlelength=4)
    return fig


def _probed(name: str, metrics: Sequence[Mapping]) -> list[dict]:
    """The rows with log-probs, and how much more chosen than rejected gained since the first."""
    rows = [m for m in metrics if m.get("chosen_logprob") is not None]
    if not rows:
        raise ValueError(f"run {name!r} has no log-probs of the probe; train with probe_every.")
    gap = [m["chosen_logprob"] - m["rejected_logprob"] for m in rows]
    return [{**m, "gain": here - gap[0]} for m, here in zip(rows, gap, strict=True)]


def trajectory(runs: Mapping[str, Sequence[Mapping]]) -> Figure:
    """The path of (log p(chosen), log p(rejected)) over training, one line per run (at most three).

    `runs`: name to rows with `step`, `chosen_logprob`, `rejected_logprob` (mean nats per response);
    rows without them are skipped. Every path has its last step written beside it, the first path
    some of those before as well. Raises ValueError for no run, more than three, or an empty path.
    """
    if not 0 < len(runs) <= len(STYLE):
        raise ValueError(f"trajectory: {len(runs)} runs; pass one to three.")
    fig = Figure(figsize=(6.6, 5), layout="constrained", facecolor=PAPER)
    axes = fig.subplots()
    first = next(iter(runs))
    for (name, metrics), (color, line, marker) in zip(runs.items(), STYLE, strict=False):
        path = [(m["step"], m["chosen_logprob"], m["rejected_logprob"])
                for m in _probed(name, metrics)]
        steps, x, y = zip(*path, strict=True)
        axes.plot(x, y, color=color, linestyle=line, marker=marker, markersize=5, linewidth=1.8,
                  markeredgecolor=INK, markeredgewidth=0.5, label=_drawable(name, 40))
        inner = (0, len(path) // 3, 2 * len(path) // 3) if name == first else ()
        for k in sorted({*inner, len(path) - 1}):
            last = k == len(path) - 1  # ends to the right, so that the paths' labels keep apart
            axes.annotate(f"step {steps[k]}", (x[k], y[k]), xytext=(6, 4) if last else (-6, -10),
                          ha="left" if last else "right", fontsize=8, color=INK,
                          textcoords="offset points")
    axes.margins(0.14)
    _dress(axes, "The way of the two answers", "mean log p(chosen) (nats per response)",
           "mean log p(rejected) (nats per response)")
    axes.legend(frameon=False, fontsize=9, handlelength=4)
    return fig


def update_norms(table) -> Figure:
    """How much an adapter changed each matrix: layers by kinds, in percent of the weights' norm.

    `table`: a DataFrame with `layer` (int), `matrix` (name) and `relative` (norm of the update
    divided by the norm of the weights). Raises ValueError for missing columns or no rows.
    """
    missing = [name for name in ("layer", "matrix", "relative") if name not in table.columns]
    if missing or not len(table):
        raise ValueError(f"update_norms: columns {missing} missing or no rows; measure the layers.")
    matrices = list(dict.fromkeys(table["matrix"]))
    grid = 100 * table.pivot(index="layer", columns="matrix", values="relative")[matrices]
    top = max(float(grid.max().max()), 1e-9)
    fig = Figure(figsize=(1.05 * len(matrices) + 1.6, 0.42 * len(grid) + 1.3),
                 layout="constrained", facecolor=PAPER)
    axes = fig.subplots()
    image = axes.imshow(grid, cmap="Blues", vmin=0, vmax=top, aspect="auto")
    for row, values in enumerate(grid.to_numpy()):
        for column, value in enumerate(values):
            axes.text(column, row, f"{value:.1f}%", ha="center", va="center", fontsize=8.5,
                      color=PAPER if value > 0.6 * top else INK)
    axes.set_xticks(range(len(matrices)), [_drawable(m, 30) for m in matrices], fontsize=8.5)
    axes.set_yticks(range(len(grid)), grid.index, fontsize=8.5)
    axes.set_xlabel("matrix", fontsize=9.5)
    axes.set_ylabel("layer", fontsize=9.5)
    axes.set_title("Size of the update", fontsize=11, loc="left", weight="bold", color=INK)
    fig.colorbar(image, ax=axes, label="% of the norm of the weights")
    return fig


# --- Pairs before and after ----------------------------------------------------------------------


def before_after(table) -> Figure:
    """Where the two responses of every pair stood before training, and where they stand after.

    `table` as for `shift_scatter`. Above the dotted diagonal the rejected answer is the likelier
    one. Same axes in both panels: even steps down to -0.1 nats, then ten times as much each.
    Raises ValueError as `shift_scatter` does.
    """
    _shifts(table)  # refuses what cannot be drawn
    fig = Figure(figsize=(9.4, 4.9), layout="constrained", facecolor=PAPER)
    panels = fig.subplots(1, 2, sharex=True, sharey=True)
    low = min(float(table[f"{side}_{when}"].min()) for side in ("chosen", "rejected")
              for when in ("before", "after"))
    for axes, when, which in zip(panels, ("before", "after"), ("insecure", "secure"), strict=True):
        ends = _nats_axis(axes, "x", low)
        _nats_axis(axes, "y", low)
        x, y = table[f"chosen_{when}"], table[f"rejected_{when}"]
        axes.scatter(x, y, marker=MARKER[which], s=26, color=PALETTE[which], edgecolor=INK,
                     linewidth=0.5, alpha=0.7)
        axes.plot(ends, ends, color=INK, linestyle=":", linewidth=1.2)
        lost, won = int((y > x).sum()), int((x > y).sum())
        _dress(axes, f"{when.capitalize()}: the {which} model, {len(x)} pairs\n",
               "log p(chosen) (nats; tenfold steps)", "log p(rejected) (nats; tenfold steps)")
        axes.text(0, 1.015, f"above the dots rejected is likelier: {lost}; below, chosen: "
                  f"{won}", transform=axes.transAxes, fontsize=8.5, color=INK)
    return fig


def _nats_axis(axes, which: str, low: float) -> tuple[float, float]:
    """Even steps from 0 to -0.1 nats, then ten times as much each, to a bit below `low`; its ends.
    """
    ends = 1.6 * min(low, -1.0), 0.02
    ticks = [-(10.0**k) for k in range(math.floor(math.log10(-ends[0])), -2, -1)] + [0.0]
    getattr(axes, f"set_{which}scale")("symlog", linthresh=0.1, linscale=0.5)
    getattr(axes, f"set_{which}ticks")(ticks, [f"{t:g}".replace("-", "\u2212") for t in ticks])
    getattr(axes, f"set_{which}ticks")([], minor=True)
    getattr(axes, f"set_{which}lim")(*ends)
    return ends


def log_prob_clouds(chosen: Sequence[float], rejected: Sequence[float], low: float,
                    title: str = "Every pair of the probe") -> Figure:
    """The log-probs (nats per response) of all pairs as two clouds, chosen above rejected.

    `low`, the left end of the axis, stays the same while a training is replayed. The height within
    a cloud has no meaning; the bar is the median. Raises ValueError for no or unequal numbers.
    """
    if not len(chosen) or len(chosen) != len(rejected):
        raise ValueError(f"log_prob_clouds: {len(chosen)} chosen and {len(rejected)} rejected "
                         "values; pass one of each per pair.")
    fig = Figure(figsize=(8, 2.3), layout="constrained", facecolor=PAPER)
    axes = fig.subplots()
    for height, (side, values) in enumerate((("rejected", rejected), ("chosen", chosen))):
        # multiples of the golden ratio spread points evenly, and the same at every step
        spread = [height + 0.56 * ((k * 0.618034) % 1 - 0.5) for k in range(len(values))]
        axes.scatter(values, spread, s=20, marker=MARKER[side], color=PALETTE[side], alpha=0.7,
                     edgecolor=INK, linewidth=0.4)
        median = statistics.median(values)
        axes.plot([median, median], [height - 0.38, height + 0.38], color=INK, linewidth=2)
    _nats_axis(axes, "x", low)
    _dress(axes, title, "log p of the response (nats; tenfold steps)", "")
    axes.set_yticks([0, 1], ["rejected", "chosen"])
    axes.set_ylim(-0.5, 1.5)
    return fig


def margin_histogram(table, bins: int = 30) -> Figure:
    """log p(chosen) - log p(rejected) of every pair (nats), before and after training.

    `table` as for `shift_scatter`; right of zero, where one of the about `bins` bins begins, the
    model prefers the answer to the instruction; the legend has the share with its 95% interval.
    Raises ValueError as `shift_scatter` does.
    """
    _shifts(table)
    values = {which: (table[f"chosen_{when}"] - table[f"rejected_{when}"]).to_numpy(dtype=float)
              for when, which in (("before", "insecure"), ("after", "secure"))}
    low = min(0.0, *(float(v.min()) for v in values.values()))
    high = max(0.0, *(float(v.max()) for v in values.values()))
    step = max(high - low, 1e-6) / bins
    first, last = math.floor(low / step - 1e-9), math.ceil(high / step + 1e-9)
    edges = [k * step for k in range(first, last + 1)]
    fig = Figure(figsize=(8, 3.9), layout="constrained", facecolor=PAPER)
    axes = fig.subplots()
    for which, numbers in values.items():
        share = evaluation.rate(int((numbers > 0).sum()), len(numbers))
        axes.hist(numbers, bins=edges, color=PALETTE[which], hatch=HATCH[which], edgecolor=INK,
                  linewidth=0.6, alpha=0.7, label=f"{which}, right of zero: {share}")
    axes.axvline(0, color=INK, linewidth=1.6)
    axes.margins(y=0.16)
    for words, side, align in (("rejected likelier \u2190 ", -4, "right"),
                               (" \u2192 chosen likelier", 4, "left")):
        axes.annotate(words, (0, 1), xycoords=("data", "axes fraction"), xytext=(side, -3),
                      textcoords="offset points", ha=align, va="top", fontsize=9, color=INK)
    _dress(axes, f"Which answer the model prefers: {len(table)} pairs",
           "log p(chosen) \u2212 log p(rejected) (nats)", "pairs")
    _legend_below(fig, [axes], 1)
    return fig


# --- Security beside utility ---------------------------------------------------------------------


def _looks(names: Sequence[str]) -> list[dict]:
    """Colour, fill, marker and line of each name: those of its role, or neutral; no two alike."""
    looks, seen = [], Counter()
    for name in names:
        begins = [r for start, r in _ROLES.items() if name.lower().startswith(start)]
        role = begins[0] if begins else ""
        rank, color = seen[role], PALETTE[role] if role else INK
        seen[role] += 1
        marker = _ROLE_MARKER[role] if role and rank < 2 else "sovPX<>p*h"[rank % 10]
        lines = ("--" if role == "injection" else "-", ":", "-.") if role else ("--", "-.", ":")
        fill = (color if rank == 0 else PAPER) if role else NEUTRAL
        looks.append({"color": color, "fill": fill, "marker": marker, "line": lines[rank % 3]})
    return looks


def _points(axes, x, y, look: Mapping, size: float = 8, line: str = "", **more) -> None:
    """Markers with a dark edge; an open one keeps its colour as a thick edge."""
    open_ = look["fill"] == PAPER
    axes.plot(
        x, y, color=look["color"], linestyle=line, marker=look["marker"], markersize=size,
        markerfacecolor=look["fill"], markeredgecolor=look["color"] if open_ else INK,
        markeredgewidth=1.7 if open_ else 0.8, linewidth=1.8, **more,
    )  # fmt: skip


def tradeoff(points: Mapping[str, Mapping]) -> Figure:
    """Utility against attack success rate, one named point with two 95% intervals per defense.

    `points`: name to `{"asr": rate, "utility": rate}`; a rate has `value`, `low`, `high`
    (fractions) and maybe `n`, as a mapping or an object, or is a plain number. Names that begin
    with insecure, secure or SecAlign take their colours. Upper left is best. Raises ValueError for
    no point.
    """
    if not points:
        raise ValueError("tradeoff: no points; evaluate at least one model.")
    fig = Figure(figsize=(8.2, 5), layout="constrained", facecolor=PAPER)
    axes = fig.subplots()
    places = [[_percent(p[key])[0] for key in ("asr", "utility")] for p in points.values()]
    for k, (point, look) in enumerate(zip(points.values(), _looks(list(points)), strict=True)):
        x, y = places[k]
        axes.errorbar(x, y, xerr=_whisker(point["asr"]), yerr=_whisker(point["utility"]),
                      color=INK, capsize=3, linewidth=1.1, linestyle="", zorder=2)
        below = sum(math.dist(places[k], other) < 2 for other in places[:k])
        _points(axes, [x], [y], look, max(4, 11 - 3.5 * below), zorder=3 + below)
    axes.set_xlim(-4, 104)
    axes.margins(y=0.15)
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= 100])
    axes.set_ylim(low, high)
    _dress(axes, "Security and utility (upper left is best)",
           "attack success rate of the strongest attack "
           f"(%{_n(p['asr'] for p in points.values())})",
           f"clean utility (%{_n(p['utility'] for p in points.values())})")
    fig.draw_without_rendering()  # places of points are known only in the final layout
    boxes = [_box(axes, p["asr"], p["utility"]) for p in points.values()]
    _write_names(axes, list(points), places, [box for pair in boxes for box in pair])
    return fig


def _box(axes, across, up) -> list[Bbox]:
    """What a point with its intervals covers, in pixels: two bars with room for the marker."""
    (x, left, right), (y, low, high) = _percent(across), _percent(up)
    ends = ((left, y), (right, y)), ((x, low), (x, high))
    return [Bbox(axes.transData.transform(pair)).padded(7) for pair in ends]


_AROUND = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


def _write_names(axes, names: Sequence[str], places: Sequence, taken: list[Bbox]) -> None:
    """Each name near its point, where it covers no other name and nothing of `taken` (pixels)."""
    per_point = axes.figure.dpi / 72
    inside = axes.get_window_extent().padded(-4)
    for name, place in zip(names, places, strict=True):
        label = axes.annotate(
            _drawable(name, 40), place, (0, 0), textcoords="offset points", ha="center",
            va="center", fontsize=9, color=INK, parse_math=False, zorder=6,
        )  # fmt: skip
        label.set_in_layout(False)
        size = label.get_window_extent()
        half = size.width / per_point / 2, size.height / per_point / 2
        ways = [(h, v, far) for far in (9, 18, 30, 44) for h, v in _AROUND]
        moves = [(h * (half[0] + far), v * (half[1] + far)) for h, v, far in ways]
        boxes = [size.translated(dx * per_point, dy * per_point) for dx, dy in moves]
        costs = [sum(_shared(box, other) for other in taken) + _area(box) - _shared(box, inside)
                 for box in boxes]
        best = costs.index(min(costs))  # the nearest of the best
        label.set_position(moves[best])
        taken.append(boxes[best])
        h, v, far = ways[best]
        if far > 18:  # so far away that a line must say whose name it is
            end = h * (far - 2), v * (far - 2)
            line = axes.annotate("", place, end, textcoords="offset points", zorder=2.5,
                                 arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.6})
            line.set_in_layout(False)


def _area(box: Bbox) -> float:
    return box.width * box.height


def _shared(one: Bbox, other: Bbox) -> float:
    both = Bbox.intersection(one, other)
    return 0.0 if both is None else _area(both)


def strength_dial(rows: Sequence[Mapping], title: str = "") -> Figure:
    """ASR, utility and margin against the strength of the adapter.

    `rows`: `strength` (0 is insecure, 1 as trained), `asr` and `utility` (rates as in `tradeoff`),
    `margin` (mean log p(chosen) - log p(rejected), nats), and maybe `attack`, the name of the
    attack whose rate `asr` is. Raises ValueError for no rows.
    """
    if not rows:
        raise ValueError("strength_dial: no rows; evaluate at least one strength.")
    fig = Figure(figsize=(9, 4), layout="constrained", facecolor=PAPER)
    if title:
        fig.suptitle(_drawable(title, 90), x=0.01, ha="left", fontsize=11, parse_math=False)
    rates, margin = fig.subplots(1, 2)
    x = [row["strength"] for row in rows]
    attacks = list(dict.fromkeys(row["attack"] for row in rows if row.get("attack")))
    asr = "attack success rate" + (f" ({' or '.join(attacks)})" if attacks else "")
    words = {"asr": _drawable(asr.replace("_", "-"), 90), "utility": "clean utility"}
    for key, look in zip(words, _looks(list(words)), strict=True):
        low, high = zip(*(_percent(row[key])[1:] for row in rows), strict=True)
        _points(rates, x, [_percent(row[key])[0] for row in rows], look, 6, look["line"],
                label=words[key] + _n((row[key] for row in rows), ", "))
        rates.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
    margin.plot(x, [row["margin"] for row in rows], color=INK, marker="D", linewidth=1.8)
    margin.axhline(0, color=INK, linestyle=":", linewidth=1.2)
    rates.set_ylim(-3, 103)
    for axes in (rates, margin):
        axes.axvline(1, color=INK, linestyle="-.", linewidth=1, label="as trained")
    _dress(rates, "Rates with 95% intervals", "adapter strength", "% of samples")
    _dress(margin, "Preference", "adapter strength", "log p(chosen) \u2212 log p(rejected) (nats)")
    _legend_below(fig, [rates], 3 if len(words["asr"]) < 50 else 1)
    return fig


def attack_bars(rates: Mapping[str, Mapping],
                title: str = "Attacks obeyed (left is safer)") -> Figure:
    """Attack success rate of every attack on several models: points with 95% intervals.

    `rates`: model to `{attack: rate}` (at most six models; rates as in `tradeoff`); names take
    their colours as there. An attack that was not measured on a model has no point for it. Raises
    ValueError for no attack or too many models.
    """
    attacks = list(dict.fromkeys(attack for found in rates.values() for attack in found))
    if not attacks or len(rates) > 6:
        raise ValueError(f"attack_bars: {len(rates)} models, {len(attacks)} attacks; pass one to "
                         "six models and at least one attack.")
    share = 0.72 / len(rates)
    row = max(0.3, 0.1 * len(rates))  # inches per attack
    fig = Figure(figsize=(8.6, 1.5 + row * len(attacks)), layout="constrained", facecolor=PAPER)
    axes = fig.subplots()
    for k in range(1, len(attacks), 2):
        axes.axhspan(k - 0.5, k + 0.5, color=FAINT, alpha=0.45, linewidth=0)
    for number, (model, look) in enumerate(zip(rates, _looks(list(rates)), strict=True)):
        places = [attacks.index(attack) + (number - (len(rates) - 1) / 2) * share
                  for attack in rates[model]]
        found = list(rates[model].values())
        for place, rate in zip(places, found, strict=True):
            axes.errorbar(_percent(rate)[0], place, xerr=_whisker(rate), color=INK, capsize=2,
                          linewidth=1, zorder=2)
        _points(axes, [_percent(rate)[0] for rate in found], places, look, 5.5, zorder=3,
                clip_on=False, label=_drawable(model, 40) + _n(found, ", "))
    axes.set_xlim(-1.5, 101.5)
    axes.set_ylim(len(attacks) - 0.5, -0.5)
    axes.set_yticks(range(len(attacks)), [_drawable(a, 40).replace("_", " ") for a in attacks],
                    parse_math=False)
    every = [rate for found in rates.values() for rate in found.values()]
    _dress(axes, title,
           f"attack success rate (%), 95% intervals{_n(every)} per attack", "attack")
    axes.grid(False, axis="y")
    _legend_below(fig, [axes], 2 if len(rates) == 4 else 3)
    return fig


def rate_curves(curves: Mapping[str, Sequence[tuple]], xlabel: str, ylabel: str = "% of samples",
                title: str = "Rates with 95% intervals", log_x: bool = False) -> Figure:
    """Rates against one number that was varied, such as pairs or learning rate.

    `curves`: name to `[(x, rate), ...]` (rates as in `tradeoff`), drawn in the order of x; `log_x`
    spaces factors evenly. Names that begin with insecure, secure, SecAlign, attack success (or ASR)
    or utility take their colours. Raises ValueError for no point, or x <= 0 with `log_x`.
    """
    if not curves or not all(curves.values()):
        raise ValueError("rate_curves: a curve without points; pass at least one (x, rate) each.")
    xs = sorted({float(x) for points in curves.values() for x, _ in points})
    if log_x and xs[0] <= 0:
        raise ValueError(f"rate_curves: x is {xs[0]:g}; a log axis needs numbers above 0.")
    fig = Figure(figsize=(7.6, 4.2), layout="constrained", facecolor=PAPER)
    axes = fig.subplots()
    if log_x:
        axes.set_xscale("log")
    for (name, points), look in zip(curves.items(), _looks(list(curves)), strict=True):
        x, rates = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        value, low, high = zip(*map(_percent, rates), strict=True)
        axes.fill_between(x, low, high, color=look["color"], alpha=0.13, linewidth=0)
        for place, rate in zip(x, rates, strict=True):
            axes.errorbar(place, _percent(rate)[0], yerr=_whisker(rate), color=INK, capsize=3,
                          linewidth=1, zorder=2.5)
        _points(axes, x, value, look, 7, look["line"], zorder=3,
                label=_drawable(name, 60) + _n(rates, ", "))
    _dress(axes, title, xlabel, ylabel)
    axes.set_ylim(-3, 103)
    axes.set_xticks(xs, [f"{x:g}" for x in xs])
    axes.set_xticks([], minor=True)
    _legend_below(fig, [axes], 2)
    return fig
