"""The two answers of the diagram part in training: a picture for each of some steps."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from ..samples import DINOSAUR_HOST, DINOSAUR_PAYLOAD
from ..visible import number
from .canvas import FAMILY, drawable, dress, sheet, write
from .palette import INK, LINE, MARKER, PALETTE, PAPER

FRAMES = 25
_ANSWERS = {"chosen": DINOSAUR_HOST.answer, "rejected": DINOSAUR_PAYLOAD.answer}


def parting(log: Sequence[Mapping], answers: Mapping[str, str] = _ANSWERS,
            frames: int = FRAMES) -> list[Figure]:
    """Log p of both answers up to some steps of a training, on the axes of the whole of it.

    `log`: rows with `step`, `chosen_logprob` and `rejected_logprob` (nats per response) of one
    pair; rows without them are skipped. The first picture is of the first row, the last of the
    last; early steps, in which most happens, get more of the `frames` pictures. Raises ValueError
    for fewer than two rows.
    """
    rows = [row for row in log if None not in map(row.get, ("chosen_logprob", "rejected_logprob"))]
    if len(rows) < 2:
        raise ValueError("parting: fewer than two steps with log-probs; train with probe_every.")
    last = len(rows) - 1
    ends = sorted({round(last * (k / (frames - 1)) ** 2) for k in range(frames)})
    return [_until(rows, end, answers) for end in ends]


def _until(rows: Sequence[Mapping], end: int, answers: Mapping[str, str]) -> Figure:
    fig, axes = sheet(7.4, 4)
    now, last = rows[end], rows[-1]["step"]
    lowest = min(row[f"{role}_logprob"] for row in rows for role in answers)
    axes.plot((0, last), (0, 0), color=INK, linewidth=0.8)
    for role, answer in answers.items():
        values = [row[f"{role}_logprob"] for row in rows[: end + 1]]
        axes.plot([row["step"] for row in rows[: end + 1]], values, color=PALETTE[role],
                  linestyle=LINE[role], linewidth=2.4, marker=MARKER[role], markersize=8,
                  markevery=[end], clip_on=False, label=f"{role}: {drawable(answer, 80)}")
    _name_ends(axes, now, last, -0.08 * lowest)
    gap = now["chosen_logprob"] - now["rejected_logprob"]
    likelier = "chosen" if gap > 0 else "rejected"
    dress(axes, f"Step {now['step']} of {last}: {likelier} is likelier, by "
                f"{number(abs(gap), 1)} nats", "training step", "log p (nats per response)")
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= last])
    axes.set_xlim(0, 1.28 * last)
    axes.set_ylim(1.08 * lowest, -0.1 * lowest)
    axes.spines["bottom"].set_bounds(0, last)
    legend = fig.legend(loc="outside upper left", frameon=False, handlelength=4,
                        prop={"family": FAMILY, "size": 9})
    for text in legend.get_texts():
        text.set_parse_math(False)
    return fig


def _name_ends(axes, now: Mapping, last: int, apart: float) -> None:
    """Name and number beside both ends, at least `apart` from each other."""
    ends = {role: now[f"{role}_logprob"] for role in ("chosen", "rejected")}
    middle = sum(ends.values()) / 2
    upper = max(ends, key=ends.get)
    for role, value in ends.items():
        place = (max(value, middle + apart / 2) if role == upper
                 else min(value, middle - apart / 2))
        write(axes, now["step"] + 0.02 * last, place, f"{role} {number(value, 1)}", 11,
              color=PALETTE[role], weight="bold",
              bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1, "alpha": 0.85})
