"""Trainings over their steps: one run, runs beside each other, the way of the two answers."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from .canvas import drawable, dress, legend_below, sheet
from .palette import INK, LINE, MARKER, PALETTE, STYLE

WINDOW = 20  # batches whose mean is drawn over a noisy curve


def training_curves(metrics: Sequence[Mapping]) -> Figure:
    """Loss, margin and both log-probabilities against the training step.

    `metrics`: rows with `step`, `loss`, `margin` (beta times nats; both of one batch, so faint,
    under the mean of the last `WINDOW` rows), `chosen_logprob` and `rejected_logprob` (nats per
    response, mean of the probe). Absent or None values are skipped. A mark says where the DPO loss
    begins, if the loss of the first step is log 2. Raises ValueError for no rows.
    """
    if not metrics:
        raise ValueError("training_curves: no rows in metrics; log at least one step.")
    fig, (loss, margin, logp) = sheet(10, 3.7, 3)
    losses = _logged(metrics, "loss")
    _batches(loss, losses)
    _mark_log2(loss, losses)
    dress(loss, "Loss", "training step", "training loss")
    loss.margins(y=0.12)
    if losses.empty or losses.min() >= 0:
        loss.set_ylim(bottom=0)
    _batches(margin, _logged(metrics, "margin"))
    margin.axhline(0, color=INK, linestyle=":", linewidth=1.4)
    dress(margin, "Margin: chosen over rejected", "training step", "margin (beta \u00d7 nats)")
    for role in ("chosen", "rejected"):
        values = _logged(metrics, f"{role}_logprob")
        _curve(logp, values, PALETTE[role], LINE[role], MARKER[role], role)
    dress(logp, "What moved", "training step", "log p (nats per response)")
    legend_below(fig, [loss if loss.get_legend_handles_labels()[1] else margin, logp], 4)
    return fig


def _logged(metrics: Sequence[Mapping], key: str) -> pd.Series:
    """What was logged under a name, by step."""
    return pd.Series({m["step"]: m[key] for m in metrics if m.get(key) is not None}, dtype=float)


def _mark_log2(axes, losses: pd.Series) -> None:
    """Marks log 2 unless the loss of the very first step, before any update, is another number."""
    if losses.empty or losses.index[0] > 1 or abs(losses.iloc[0] - math.log(2)) > 0.02:
        return
    axes.axhline(math.log(2), color=INK, linestyle=":", linewidth=1.4)
    axes.annotate("log 2: before training", (1, math.log(2)), xycoords=("axes fraction", "data"),
                  xytext=(-3, 3), textcoords="offset points", ha="right", fontsize=8, color=INK)


def _batches(axes, values: pd.Series) -> None:
    """Numbers of single batches, faint, and the mean of the last `WINDOW` of them."""
    if len(values) <= 2 * WINDOW:
        _curve(axes, values, INK, "-", "")
        return
    axes.plot(values.index, values, color=INK, alpha=0.3, linewidth=0.7,
              label="loss, margin: single batch")
    means = values.rolling(WINDOW, min_periods=1).mean()
    _curve(axes, means, INK, "-", "", f"mean of the last {WINDOW} batches")


def _curve(axes, values: pd.Series, color: str, line: str, marker: str, label=None) -> None:
    if values.empty:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", color=INK)
        return
    every = max(1, len(values) // 9)
    marker = marker or ("." if len(values) < 3 else None)  # a lone point draws no line
    axes.plot(values.index, values, color=color, linestyle=line, linewidth=1.8, marker=marker,
              markevery=every, markersize=5, label=label)


def compare_training(runs: Mapping[str, Sequence[Mapping]]) -> Figure:
    """Margin, log p(chosen) and log p(rejected) of several runs (at most three) over the steps.

    `runs`: name to rows with `step`, `chosen_logprob`, `rejected_logprob` (mean nats per response
    on the probe pairs); rows without them are skipped. The margin is drawn before beta multiplies
    it, from these means, so that it has no noise of batches. Raises ValueError for no run, more
    than three, or a run without log-probs.
    """
    fig, panels = sheet(10, 3.6, 3)
    for (name, (chosen, rejected)), style in zip(_probes(runs).items(), STYLE, strict=False):
        gap = chosen - rejected
        for axes, values in zip(panels, (gap - gap.iloc[0], chosen, rejected), strict=True):
            _curve(axes, values, *style, drawable(name, 40))
    panels[0].axhline(0, color=INK, linestyle=":", linewidth=1.2)
    dress(panels[0], "Margin: chosen over rejected", "training step", "margin / beta (nats)")
    for axes, role in zip(panels[1:], ("chosen", "rejected"), strict=True):
        dress(axes, f"log p({role})", "training step", "log p (nats per response)")
    low = min(axes.get_ylim()[0] for axes in panels[1:])
    for axes in panels[1:]:  # one scale, so that the two panels can be compared by eye
        axes.set_ylim(low, 0.5)
    legend_below(fig, panels[:1], len(runs))
    return fig


def _probes(runs: Mapping[str, Sequence[Mapping]]) -> dict[str, tuple[pd.Series, pd.Series]]:
    """log p(chosen) and log p(rejected) of every run, by step. Raises ValueError."""
    if not 0 < len(runs) <= len(STYLE):
        raise ValueError(f"{len(runs)} runs to draw; pass one to three.")
    probes = {name: (_logged(rows, "chosen_logprob"), _logged(rows, "rejected_logprob"))
              for name, rows in runs.items()}
    for name, (chosen, _) in probes.items():
        if chosen.empty:
            raise ValueError(f"run {name!r} has no log-probs of the probe; train with probe_every.")
    return probes


def trajectory(runs: Mapping[str, Sequence[Mapping]]) -> Figure:
    """The path of (log p(chosen), log p(rejected)) over training, one line per run (at most three).

    `runs` as for `compare_training`, with the same errors. Every path has its last step written
    beside it, the first path some of those before as well.
    """
    fig, axes = sheet(6.6, 5)
    first = next(iter(runs), None)
    for (name, (x, y)), (color, line, marker) in zip(_probes(runs).items(), STYLE, strict=False):
        axes.plot(x, y, color=color, linestyle=line, marker=marker, markersize=5, linewidth=1.8,
                  markeredgecolor=INK, markeredgewidth=0.5, label=drawable(name, 40))
        inner = (0, len(x) // 3, 2 * len(x) // 3) if name == first else ()
        for k in sorted({*inner, len(x) - 1}):
            last = k == len(x) - 1  # ends to the right, so that the paths' labels keep apart
            axes.annotate(f"step {x.index[k]}", (x.iloc[k], y.iloc[k]),
                          xytext=(6, 4) if last else (-6, -10), ha="left" if last else "right",
                          fontsize=8, color=INK, textcoords="offset points")
    axes.margins(0.14)
    dress(axes, "The way of the two answers", "mean log p(chosen) (nats per response)",
          "mean log p(rejected) (nats per response)")
    legend = axes.legend(frameon=False, fontsize=9, handlelength=4)
    for text in legend.get_texts():  # names stay text
        text.set_parse_math(False)
    return fig
