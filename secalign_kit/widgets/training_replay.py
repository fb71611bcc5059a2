"""The training replay: a recorded run, step by step."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import ipywidgets

from .. import figures
from ..visible import number
from .html import image_html, message_html
from .view import View, answering, common, image, row, wide


def read_metrics(path: str | Path) -> list[dict]:
    """The rows of a run's `metrics.jsonl`. Raises ValueError for no file or a row without step."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no log {path.name!r}; train a run, it writes metrics.jsonl.")
    rows = []
    for place, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise ValueError(f"Row {place} of {path.name!r} is no record with a step; remove it.")
        rows.append(row)
    return rows


def recorded(metrics: Sequence[Mapping]) -> list[int]:
    """Indices of the rows in which both log-probs were measured."""
    keys = ("chosen_logprob", "rejected_logprob")
    return [i for i, row in enumerate(metrics) if all(row.get(key) is not None for key in keys)]


def replay_words(row: Mapping) -> str:
    """One recorded step as a sentence."""
    parts = [f"{words} {number(row[key], *form)}" for key, words, *form in (
        ("loss", "loss", 3), ("margin", "margin", 2, "+"),
        ("chosen_logprob", "mean log p(chosen)"),
        ("rejected_logprob", "mean log p(rejected)")) if row.get(key) is not None]
    return f"Step {row['step']}: " + ", ".join(parts) + " (log p in nats per response)."


def replay_figure(metrics: Sequence[Mapping], until: int):
    """The training curves up to row `until`, on the axes of the whole run."""
    whole, part = (figures.training_curves(rows) for rows in (metrics, metrics[: until + 1]))
    for axes, final in zip(part.axes, whole.axes, strict=True):
        axes.set_xlim(final.get_xlim())
        axes.set_ylim(final.get_ylim())
    return part


def clouds_figure(metrics: Sequence[Mapping], at: int):
    """The pairs of the probe at row `at`, on the axis of the whole run; None if only means were
    recorded.
    """
    row, keys = metrics[at], ("chosen_logprobs", "rejected_logprobs")
    if not all(row.get(key) for key in keys):
        return None
    low = min(value for other in metrics for key in keys for value in other.get(key) or [0.0])
    return figures.log_prob_clouds(*(row[key] for key in keys), low,
                                   f"Every pair of the probe at step {row['step']}")


def training_replay(metrics: Sequence[Mapping] | str | Path) -> View:
    """A slider over the recorded steps of a run: rows of a log, or the path of a metrics.jsonl.

    Parts: step (slider), player (a play button), image (curves), clouds (one point per pair),
    words, message, progress.
    """
    parts = SimpleNamespace(
        clouds=ipywidgets.HTML(), player=ipywidgets.Play(description="play", interval=700),
        step=wide(ipywidgets.SelectionSlider, "step", options=[("none", -1), ("yet", -2)],
                  continuous_update=False),
        image=ipywidgets.HTML(),
        words=ipywidgets.HTML(), **common(),
    )
    rows: list[Mapping] = []

    def show(_=None) -> None:
        until = parts.step.value
        if until is None or until < 0:
            return
        with answering(parts, "words") as progress:
            for index in progress((until,)):
                parts.image.value = _picture(replay_figure(rows, index))
                cloud = clouds_figure(rows, index)
                parts.clouds.value = _picture(cloud) if cloud else ""
                parts.words.value = message_html(replay_words(rows[index]))

    with answering(parts):
        rows += read_metrics(metrics) if isinstance(metrics, str | Path) else metrics
        steps = recorded(rows)
        if len(steps) < 2:  # and a slider of one step is an error in the browser
            raise ValueError("The log holds fewer than two steps with log-probs; set probe_every.")
        parts.step.options = [(str(rows[index]["step"]), index) for index in steps]
        parts.step.value = steps[-1]
        parts.player.max = parts.player.value = len(steps) - 1
        show()

    def go(_=None) -> None:
        parts.step.value = parts.step.options[parts.player.value][1]

    def twin() -> dict:
        if parts.message.value:
            return {"text/html": parts.message.value}
        steps = recorded(rows)
        clouds = [clouds_figure(rows, index) for index in (steps[0], steps[-1])]
        return image(replay_figure(rows, parts.step.value), *filter(None, clouds))

    parts.step.observe(show, "value")
    parts.player.observe(go, "value")
    return View("Training replay", [row(parts.player, parts.step), parts.progress, parts.message,
                                    parts.words, parts.clouds, parts.image], parts, twin)


def _picture(fig) -> str:
    return image_html(figures.png(fig), figures.words(fig))
