"""Trainings over their steps: one run, runs beside each other, the way of the two answers."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from .canvas import drawable, dress, legend_below
from .palette import INK, LINE, MARKER, PALETTE, PAPER, STYLE


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
    dress(loss, "Loss", "training step", "training loss")
    loss.margins(y=0.12)
    if min(losses, default=0) >= 0:
        loss.set_ylim(bottom=0)
    _batches(margin, metrics, "margin", window)
    margin.axhline(0, color=INK, linestyle=":", linewidth=1.4)
    dress(margin, "Margin: chosen over rejected", "training step", "margin (beta \u00d7 nats)")
    for role in ("chosen", "rejected"):
        _curve(logp, metrics, f"{role}_logprob", PALETTE[role], LINE[role], MARKER[role], role)
    dress(logp, "What moved", "training step", "log p (nats per response)")
    legend_below(fig, [loss if loss.get_legend_handles_labels()[1] else margin, logp], 4)
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
            _curve(axes, rows, key, *style, drawable(name, 40))
    panels[0].axhline(0, color=INK, linestyle=":", linewidth=1.2)
    dress(panels[0], "Margin: chosen over rejected", "training step", "margin / beta (nats)")
    for axes, role in zip(panels[1:], ("chosen", "rejected"), strict=True):
        dress(axes, f"log p({role})", "training step", "log p (nats per response)")
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
                  markeredgecolor=INK, markeredgewidth=0.5, label=drawable(name, 40))
        inner = (0, len(path) // 3, 2 * len(path) // 3) if name == first else ()
        for k in sorted({*inner, len(path) - 1}):
            last = k == len(path) - 1  # ends to the right, so that the paths' labels keep apart
            axes.annotate(f"step {steps[k]}", (x[k], y[k]), xytext=(6, 4) if last else (-6, -10),
                          ha="left" if last else "right", fontsize=8, color=INK,
                          textcoords="offset points")
    axes.margins(0.14)
    dress(axes, "The way of the two answers", "mean log p(chosen) (nats per response)",
           "mean log p(rejected) (nats per response)")
    axes.legend(frameon=False, fontsize=9, handlelength=4)
    return fig
