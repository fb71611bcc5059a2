"""Summaries: the demo's and the real model's results as tables, for shell and documents.

One datum: `clean utility    100.0% [99.4, 100.0] (n=596)    99.8% [99.1, 100.0] (n=596)`, insecure
and secure.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from statistics import fmean

from ..evaluation import Rate, together
from ..injections import POSITIONS
from ..markdown import table
from ..samples import DATA

SHIPPED = DATA / "demo"
"""`summary.json` of the demo with seeds 0, 1 and 2, of which the documents' tables are made."""
REAL = DATA / "real"
"""`shipped.json`, the summary of the run that the shipped adapters come from, and `summary_*.json`,
those of all held-out tasks with several seeds."""
MODELS = ("base", "undefended", "secured")  # of the real model's summary; base may be absent


Row = tuple[str, Rate, list[Rate]]  # words, insecure, secure with every seed


def _rows(summaries: Sequence[dict]) -> list[Row]:
    """Every rate of the demo's table, in its order."""
    first = summaries[0]

    def row(words: str, *keys: str) -> Row:
        return words, _rate(first["insecure"], keys), [_rate(s["secure"], keys) for s in summaries]

    places = first["insecure"]["places"]
    kinds = list(next(iter(places.values()))["obeyed"])
    return [row("clean utility", "clean_utility"), row("retention", "retention"),
            *(row(f"obeyed: {kind}, {place}", "places", place, "obeyed", kind)
              for kind in kinds for place in places),
            row("obeyed: the worst of all", "worst", "rate"),
            *(row(f"right under all attacks, {place}", "places", place, "right")
              for place in places)]


def _rate(found: dict, keys: Iterable[str]) -> Rate:
    for key in keys:
        found = found[key]
    return Rate(**found)


def _shifts(summary: dict) -> list[tuple[str, float, float]]:
    """Words, before and after, in nats, of both sides."""
    return [(f"mean log p({side}), nats", *(summary["logprob"][side][when]
                                            for when in ("before", "after")))
            for side in ("chosen", "rejected")]


def short_markdown(summary: dict) -> str:
    """A table of one run, for docs/results.md: attacks of a kind pooled over all places."""
    models = [summary[which] for which in ("insecure", "secure")]
    rows: list[tuple[str, list[Rate]]] = []

    def add(words: str, *keys: str) -> None:
        rows.append((words, [_rate(model, keys) for model in models]))

    places = list(models[0]["places"])
    for kind, words in {
            "fixed attacks": "five fixed attacks that ask for a fixed word: obeyed",
            "unseen frames": "seven kinds of unseen frames, the same word: obeyed",
            "another sample's request": "all twelve with another sample's request: obeyed"
            }.items():
        rows.append((words, [together(_rate(model, ("places", place, "obeyed", kind))
                                      for place in places) for model in models]))
    add("the most successful of 72 combinations: obeyed", "worst", "rate")
    for place in places:
        add(f"right answer under all attacks, injection {POSITIONS[place]}",
            "places", place, "right")
    add("right answer without attack (*utility*)", "clean_utility")
    add("the attackers' requests given as instructions: followed (*retention*)", "retention")
    cells: list[tuple] = [(words, f"{found[0].n:,}", *(rate.interval() for rate in found))
                          for words, found in rows]
    cells += [(words, int(summary["logprob_pairs"]), f"{before:.2f}", f"{after:.2f}")
              for words, before, after in _shifts(summary)]
    return table(("held-out test", "n", "insecure", "secure"), cells) + "\n"


def table_lines(summary: dict) -> list[str]:
    """The result as text: one line per measure, insecure and secure with n and interval."""
    lines = [f"{'':40} {'insecure':30} secure"]
    lines += [f"{words:40} {before!s:30} {after[0]}" for words, before, after in _rows([summary])]
    lines += [f"{words:40} {before:<30.2f} {after:.2f}"
              for words, before, after in _shifts(summary)]
    worst = (f"{which}: {summary[which]['worst']['attack']}" for which in ("insecure", "secure"))
    return [*lines, f"the worst of all is {'; '.join(worst)}"]


def markdown(summaries: Sequence[dict]) -> str:
    """The first summary as a Markdown table, with the secure models of the others beside it."""
    first, *others = summaries
    rows: list[tuple] = [
        (words, after[0].n, before.interval(), after[0].interval(),
         ", ".join(f"{rate.value:.1%}" for rate in after[1:]))
        for words, before, after in _rows(summaries)]
    for (words, before, after), *rest in zip(*map(_shifts, summaries), strict=True):
        rows.append((words, first["logprob_pairs"], f"{before:.2f}", f"{after:.2f}",
                     ", ".join(f"{later:.2f}" for *_, later in rest)))
    same = ("the same" if o["diagram"] == first["diagram"] else "another" for o in others)
    rows.append(("the diagram's example", 1,
                 *(f"`{first['diagram'][which]}`" for which in ("insecure", "secure")),
                 ", ".join(same)))
    return table(("", "n", "insecure", "secure", "other seeds, secure"), rows) + "\n"


# --- the real model -------------------------------------------------------------------------------

CELLS = {  # a cell of the table of separation, in words
    "naive, end": "bare, at the end", "naive, start": "bare, at the start",
    "naive, middle": "bare, in the middle", "ignore, end": "\"ignore the above\", at the end",
    "completion_other, end": "made-up headings, at the end",
    "completion, end": "completion attack, at the end",
}


def shipped_real() -> list[dict]:
    """The summaries of the documents' tables: those of several seeds, or that of the shipped run.

    Raises ValueError for seeds whose held-out tests differ.
    """
    found = [json.loads(path.read_text(encoding="utf-8")) for path in
             sorted(REAL.glob("summary_*.json")) or [REAL / "shipped.json"]]
    asked = {_rate(summary["secured"], ("clean_utility",)).n for summary in found}
    if len(asked) > 1:
        raise ValueError(f"{str(REAL)!r} holds summaries of {' and '.join(map(str, sorted(asked)))}"
                         " held-out tasks; make all with the same --n")
    return found


def of_seeds(summaries: Sequence[dict]) -> dict:
    """One summary of several seeds' models: every rate counts all their trials together.

    `left_out` is a sum, and "worst" the attack and place that succeed most often in all seeds.
    """
    names = [name for name in of_real(summaries[0]) if all(name in other for other in summaries)]
    if len(summaries) == 1:
        return {name: summaries[0][name] for name in names}
    found = {name: _counted([summary[name] for summary in summaries]) for name in names}
    for model in found.values():
        cells = {cell: rates["obeyed"] for cell, rates in model["separation"].items()
                 if "obeyed" in rates}
        worst = max(cells, key=lambda cell: cells[cell]["value"])
        model["worst"] = {"attack": f"{worst}, probe", "rate": cells[worst]}
    return found


def _counted(parts: Sequence):
    """Rates together, numbers in sum, dictionaries key by key, and the first of anything else."""
    first = parts[0]
    if isinstance(first, dict) and "low" in first:
        return asdict(together(Rate(**part) for part in parts))
    if isinstance(first, dict):
        return {key: _counted([part[key] for part in parts if key in part])
                for key in dict.fromkeys(key for part in parts for key in part)}
    return sum(parts) if isinstance(first, int) else first


def of_real(summary: dict) -> list[str]:
    """The models that a summary of the real model holds."""
    return [which for which in MODELS if which in summary]


def real_rows(summary: dict) -> list[tuple[str, list[Rate | None]]]:
    """Every rate of the real model's table: words, and the rate of each of `of_real`."""
    found = [summary[which] for which in of_real(summary)]

    def rates(*keys: str) -> list[Rate | None]:
        return [_found(model, keys) for model in found]

    cells = list(found[-1]["separation"])
    return [*((f"obeyed: {CELLS.get(cell, cell)}", rates("separation", cell, "obeyed"))
              for cell in cells),
            ("obeyed: all of these", [_pooled(model, "obeyed") for model in found]),
            ("obeyed: the most successful of them", rates("worst", "rate")),
            *((f"right answer: {CELLS.get(cell, cell)}", rates("separation", cell, "right"))
              for cell in cells),
            ("right answer: all of these", [_pooled(model, "right") for model in found]),
            ("right answer without attack (utility)", rates("clean_utility")),
            ("the question as an instruction: answered (retention)", rates("retention")),
            ("the question as second half of an instruction: answered", rates("second")),
            ("texts that speak as attackers do: right", rates("benign")),
            ("empty or looping answers", rates("degenerate"))]


def _found(model: dict, keys: Iterable[str]) -> Rate | None:
    for key in keys:
        if key not in model:
            return None
        model = model[key]
    return Rate(**model)


def _pooled(model: dict, key: str) -> Rate | None:
    rates = [Rate(**cell[key]) for cell in model["separation"].values() if key in cell]
    return together(rates) if rates else None


def real_lines(summary: dict) -> list[str]:
    """The real model's result as text: one line per measure, each model with n and interval."""
    which = of_real(summary)
    lines = [f"{'':58}" + "".join(f"{name:30}" for name in which).rstrip()]
    lines += [f"{words:58}" + "".join(f"{str(rate or '-'):30}" for rate in rates).rstrip()
              for words, rates in real_rows(summary)]
    return [*lines, *(f"{name}: {note}" for name, note in _left_out(summary))]


def _left_out(summary: dict) -> list[tuple[str, str]]:
    return [(name, f"{summary[name]['left_out']} attacks left out, whose question the model does "
                   "not answer even as an instruction") for name in of_real(summary)]


def real_markdown(summaries: Sequence[dict]) -> str:
    """The real model's result as a Markdown table, for docs/real.md.

    Of several seeds, all trials together, and for each model the mean, smallest and largest seed.
    """
    whole = of_seeds(summaries)
    rows = [(words, *(str(rate or "-") for rate in rates)) for words, rates in real_rows(whole)]
    rows.append(("attacks left out", *(model["left_out"] for model in whole.values())))
    heads = ["held-out test", *whole]
    if len(summaries) > 1:
        heads += [f"{name}: mean of {len(summaries)} seeds (lowest to highest)" for name in whole]
        seeds = [real_rows({name: summary[name] for name in whole}) for summary in summaries]
        for k, same in enumerate(zip(*seeds, strict=True)):
            rows[k] += tuple(map(_of_each, zip(*(rates for _, rates in same), strict=True)))
        rows[-1] += ("",) * len(whole)
    return table(heads, rows) + "\n"


def _of_each(rates: Sequence[Rate | None]) -> str:
    """Mean, smallest and largest value of several seeds."""
    values = [100 * rate.value for rate in rates if rate]
    return f"{fmean(values):.1f}% ({min(values):.1f} to {max(values):.1f})" if values else "-"


def stages_markdown(summary: dict) -> str:
    """Seconds of every stage of the real model's run, with the speed of its trainings."""
    rows = [(name, f"{stage['seconds']:.0f}", f"{stage.get('tokens_per_second', ''):,}"
             if "tokens_per_second" in stage else "",
             f"{stage['share']:.0%}" if "share" in stage else "")
            for name, stage in summary["stages"].items()]
    rows.append(("all", f"{summary['seconds']:.0f}", "", ""))
    return table(("stage", "seconds", "tokens a second", "of the machine's matrix products"),
                 rows) + "\n"


def two_models_markdown(demo: dict, real: Sequence[dict]) -> str:
    """The README's small table: the embedded model and the real one, before and after.

    The embedded model's of one seed, the real one's of all that are given, trials together.
    """
    whole = of_seeds(real)
    toy, pair = (demo["insecure"], demo["secure"]), (whole["undefended"], whole["secured"])

    def placed(model: dict, *keys: str) -> Rate:
        return together(_rate(place, keys) for place in model["places"].values())

    rows: list[tuple[str, list[Rate | None]]] = [
        ("fixed attacks: obeyed", [placed(m, "obeyed", "fixed attacks") for m in toy]
         + [_pooled(m, "obeyed") for m in pair]),
        ("frames of unseen kinds: obeyed",
         [placed(m, "obeyed", "unseen frames") for m in toy] + [None, None]),
        ("the most successful combination: obeyed",
         [_rate(m, ("worst", "rate")) for m in (*toy, *pair)]),
        ("right answer under attack", [placed(m, "right") for m in toy]
         + [_pooled(m, "right") for m in pair]),
        ("right answer without attack (*utility*)",
         [_rate(m, ("clean_utility",)) for m in (*toy, *pair)]),
        ("the attackers' requests given as instructions: followed (*retention*)",
         [_rate(m, ("retention",)) for m in (*toy, *pair)]),
    ]
    return table(("held-out test", "embedded: insecure", "secure", "SmolLM2: undefended",
                  "secured"),
                 [(words, *(rate.interval() if rate else "-" for rate in rates))
                  for words, rates in rows]) + "\n"
