"""The attack bench: attacks and defenses to choose, their rates, and the items that failed."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import ipywidgets

from .. import evaluation, injections
from ..defenses import DEFENSES
from ..models import Bundle
from ..visible import one_line
from .html import message_html, prompt_html, table_html
from .inputs import WHICH, sample_items, switched
from .view import Progress, View, answering, common, dashed, row, wide

SHOWN = 50  # failing items that the bench lists


def measure_bench(bundle: Bundle, attacks: Sequence[str] = evaluation.ATTACKS,
                  defenses: Sequence[str] = ("none",), n: int = 20,
                  progress: Progress = iter) -> list[dict]:
    """Records of `evaluation.evaluate` with a `model`, for both models, every defense and attack.

    `n` held-out samples, clean and attacked. Raises ValueError for an empty choice or n < 1.
    """
    for name, chosen in (("attack", attacks), ("defense", defenses)):
        if not chosen:
            raise ValueError(f"Choose at least one {name}.")
    items = sample_items(bundle, attacks, n)
    records = []
    for model, defense in progress([(model, defense) for model in WHICH for defense in defenses]):
        with switched(bundle, model):
            answered = evaluation.evaluate(bundle, items, defense=defense)
        records += [{"model": model, **record} for record in answered]
    return records


def bench_table(records: Sequence[Mapping]) -> str:
    """Models and defenses in rows; utility and every attack's ASR with n and interval."""
    groups: dict[tuple[str, str], list] = {}
    for record in records:
        groups.setdefault((record["model"], record["defense"]), []).append(record)
    attacks = _kinds(records, "attack")
    rows = []
    for (model, defense), group in groups.items():
        summary = evaluation.summarize(group)
        rows.append((f"{model}, {defense.replace('_', '-')}", str(summary["clean_utility"]),
                     *(str(summary["asr"][attack]) for attack in attacks)))
    head = ("model, defense", "utility", *(f"ASR {a.replace('_', '-')}" for a in attacks))
    return table_html(head, rows, "Utility (higher is better) and ASR (lower is safer), 95% Wilson")


def _kinds(records: Sequence[Mapping], key: str) -> list[str]:
    """The attacks (without "none", which is no attack) or defenses of the records, in order."""
    return [kind for kind in dict.fromkeys(r[key] for r in records)
            if (key, kind) != ("attack", "none")]


def failing_label(record: Mapping) -> str:
    """One line for a list of failing items."""
    kind = "wrong" if record["attack"] == "none" else record["attack"].replace("_", "-")
    defense = record["defense"].replace("_", "-")
    return one_line(f"{record['model']}, {defense}, {kind}: {record['instruction']}")


def failing_html(record: Mapping) -> str:
    """A failing item: instruction, data with its injection marked, response, right answer."""
    data, start, end = record["data"], record["start"], record["end"]
    start, end = (start, end) if start >= 0 else (len(data), len(data))
    spans = (("instruction", record["instruction"]), ("data", data[:start]),
             ("injection", data[start:end]), ("data", data[end:]))
    rows = (("response", record["response"] or "(nothing)"), ("right answer", record["expected"]))
    return prompt_html([span for span in spans if span[1]]) + table_html(("", "text"), rows)


def attack_bench(bundle: Bundle, records: Sequence[Mapping] | None = None) -> View:
    """Attacks and defenses to choose, the table of rates, and the items that failed.

    `records` come from `measure_bench`. Parts: attacks, defenses, samples, measure (button), table,
    failing (list), detail, message, progress.
    """
    parts = SimpleNamespace(
        attacks=wide(ipywidgets.SelectMultiple, "attacks", options=dashed(injections.ATTACKS),
                     value=evaluation.ATTACKS[:1], rows=8),
        defenses=wide(ipywidgets.SelectMultiple, "defenses", options=dashed(DEFENSES),
                      value=("none",), rows=8),
        samples=wide(ipywidgets.IntSlider, "samples", value=20, min=5, max=100, step=5),
        measure=ipywidgets.Button(description="Measure", tooltip="run the chosen attacks"),
        table=ipywidgets.HTML(), detail=ipywidgets.HTML(),
        failing=ipywidgets.Select(description="failing items", options=[], rows=6,
                                  style={"description_width": "8em"}, layout={"width": "auto"}),
        **common(),
    )
    state = {"records": list(records or [])}
    if records:  # what is chosen is what is shown
        parts.attacks.value = tuple(_kinds(records, "attack"))
        parts.defenses.value = tuple(_kinds(records, "defense"))
        asked = {r["data"] for r in records if r["attack"] == "none"}
        parts.samples.value = max(parts.samples.min, len(asked))

    def show() -> None:
        if not state["records"]:
            parts.table.value = message_html("Nothing is measured yet; press the button.")
            return
        failed = evaluation.failing(state["records"])
        parts.table.value = bench_table(state["records"]) + message_html(_count(failed))
        labels = [f"{i + 1}. {failing_label(r)}" for i, r in enumerate(failed[:SHOWN])]
        parts.failing.options = [(label, i) for i, label in enumerate(labels)]
        parts.failing.value = 0 if labels else None
        detail()

    def detail(_=None) -> None:
        chosen, failed = parts.failing.value, evaluation.failing(state["records"])
        known = chosen is not None and chosen < len(failed)
        parts.detail.value = failing_html(failed[chosen]) if known else ""

    def measure(_=None) -> None:
        with answering(parts, "table", "detail") as progress:
            state["records"], parts.failing.options = [], []
            state["records"] = measure_bench(bundle, parts.attacks.value, parts.defenses.value,
                                             n=parts.samples.value, progress=progress)
            show()

    def twin() -> dict:
        failed = evaluation.failing(state["records"])
        first = failing_html(failed[0]) if failed else ""
        return {"text/html": parts.table.value + first}

    parts.failing.observe(detail, "value")
    parts.measure.on_click(measure)
    show()
    return View("Attack bench", [row(parts.attacks, parts.defenses), parts.samples,
                                 row(parts.measure, parts.progress), parts.message, parts.table,
                                 parts.failing, parts.detail], parts, twin)


def _count(failed: Sequence) -> str:
    shown = f"; the list shows the first {SHOWN}" if len(failed) > SHOWN else ""
    return f"{len(failed)} items obeyed an injection or were wrong without attack{shown}."
