"""Ablation: what each setting of the attacker in the training loop is worth, one at a time.

One datum, a row of `data/attackers/ablation.json`: `{"variant": "moves in a step: 1", "settings":
{"moves in a step": 1, "radius": 1.0, ...}, "gcg": {"n": 16, "successes": [31, ...], ...}, "right":
{"end": R, "start": R, "middle": R}, ...}` with R = `{"value", "n", "low", "high"}`.

The base is the recipe of `secalign_adaptive` with fewer pairs. Every variant differs from it in one
setting (`SETTINGS`). All are trained from the same pairs and measured on the validation split: by
GCG behind a bare payload at the end, by the five fixed attacks at three places, and without attack.

`python -m secalign_kit.studies.ablation` trains and measures what its folder lacks; a killed study
goes on there. The held-out test plays no part in it.

Limits: one seed. With 16 searches a model an interval is some 40 points wide in its middle, so that
only large differences show. What is best here need not be best for longer trainings.
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch

from .. import attackers, evaluation, figures, models, ranks, training
from ..config import RunConfig, recipe
from ..evaluation import Rate
from ..markdown import table
from ..models import Bundle
from ..samples import DATA, write_json
from .selection import still_right

SHIPPED = DATA / "attackers" / "ablation.json"
SETTINGS: dict[str, tuple[str, tuple]] = {
    "adversary_moves": ("moves in a step", (0, 1, 3, 6)),
    "adversary_radius": ("radius", (0.5, 1.0, 2.0)),
    "adversary_share": ("share of the injected pairs", (0.3, 0.6)),
    "adversary_tokens": ("tokens", (8, 16)),
    "adversary_place": ("place of the tokens", ("any", "suffix")),
    "start": ("begun from", ("secalign", "")),
    "beside": ("learned beside the adapter", ("none", "role_vectors")),
}
"""Setting -> its name in words, and the values that are tried; one of them is the base's. Without
moves there is no adversary, and the same pairs are trained on as they are."""
_WORDS = {"": "scratch", "none": "nothing", "role_vectors": "role vectors"}


def variants(folder: Path, pairs: int) -> dict[str, RunConfig]:
    """The base, which is first, and what differs from it in one setting; each has its own folder.
    """
    base = recipe("secalign_adaptive").replace(n_pairs=pairs, save_steps=25)
    found = {"base": base.replace(output=str(folder / "base"))}
    for name, (words, values) in SETTINGS.items():
        for value in values:
            if value != getattr(base, name):
                said = str(_WORDS.get(value, value))
                own = f"{name.removeprefix('adversary_')}-{said.replace(' ', '_')}"
                found[f"{words}: {said}"] = base.replace(**{name: value}, output=str(folder / own))
    return found


def settings_of(config: RunConfig) -> dict:
    """The values of `SETTINGS`, all in words but numbers."""
    values = {words: getattr(config, name) for name, (words, _) in SETTINGS.items()}
    return {words: _WORDS.get(value, value) for words, value in values.items()}


def trained(config: RunConfig) -> Bundle:
    """The run's model, trained if its folder holds no finished adapter.

    It is read from its file in any case, so that what is measured has the same weights each time.
    """
    training.refuse_other_run(config)
    adapter = Path(config.output) / "adapter"
    if not adapter.exists():  # written when the training is over, whole or not at all
        training.train(config, training.training_pairs(config),
                       training.probe_pairs(config, "validation", 64))
    return models.with_adapter(training.base_model(config), adapter)


def measure(bundle: Bundle, folder: Path, name: str, n: int, steps: int, attacked: int) -> dict:
    """What a model's row has beside its settings, of the validation split.

    GCG searches on `n` samples with so many `steps`; fixed attacks are tried on `attacked` ones.
    Raises ValueError for a number of samples below 1.
    """
    budget = attackers.Budget(steps, 48)
    searched = [item for item in evaluation.evaluation_items(
        bundle, "validation", n, "end", ("naive",)) if item.start >= 0]
    items = evaluation.evaluation_items(bundle, "validation", attacked, "all")
    records = evaluation.evaluate_file(bundle, items, folder / "records.jsonl", progress=name)
    searches = attackers.attack_file(bundle, ("gcg", attackers.gcg), searched, budget,
                                     folder / "searches.jsonl", progress=f"{name}, gcg")
    return {"gcg": attackers.summary(searches),
            "obeyed": {place: asdict(found["obeyed"]["fixed attacks"])
                       for place, found in evaluation.by_place(records).items()}
            } | still_right(records)


def row(name: str, config: RunConfig, n: int, steps: int, attacked: int = 50) -> dict:
    """Trains and measures one variant; what its folder holds already is not done again."""
    measured = measure(trained(config), Path(config.output), name, n, steps, attacked)
    return {"variant": name, "settings": settings_of(config), "pairs": config.n_pairs,
            "seed": config.seed, "split": "validation"} | measured


def ablate(folder: Path, pairs: int = 4800, n: int = 16, steps: int = 50,
           jobs: int = 1) -> list[dict]:
    """The rows of all variants, by so many processes at once, each with one thread."""
    jobs_ = [(name, config, n, steps) for name, config in variants(folder, pairs).items()]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _as_worker) as pool:
        return list(pool.map(row, *zip(*jobs_, strict=True)))


def _as_worker() -> None:
    """One thread, and an end with the study, killed or not: nothing holds a folder after it."""
    torch.set_num_threads(1)
    ranks.end_after(multiprocessing.parent_process().join)


def markdown(rows: list[dict]) -> str:
    """The variants as a Markdown table: rates with n and 95% intervals."""
    reach = min(one["gcg"]["allowed"] for one in rows)
    budgets = [*(steps for steps in attackers.BUDGETS if steps < reach), reach]
    heads = ("variant, on validation", *(f"GCG: obeyed within {steps} steps" for steps in budgets),
             "fixed attacks: obeyed", "right under fixed attacks", "utility", "retention")
    return table(heads, [
        (one["variant"], *(attackers.asr(one["gcg"], steps) for steps in budgets),
         *(evaluation.together(Rate(**rate) for rate in one[key].values())
           for key in ("obeyed", "right")),
         Rate(**one["clean_utility"]), Rate(**one["retention"])) for one in rows]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m secalign_kit.studies.ablation",
                                     description="Vary the attacker in the training loop.")
    parser.add_argument("--shipped", action="store_true", help="show what was measured")
    parser.add_argument("--folder", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--pairs", type=int, default=4800, help="of each training")
    parser.add_argument("--n", type=int, default=16, help="samples that GCG searches on")
    parser.add_argument("--steps", type=int, default=50, help="of a search")
    parser.add_argument("--jobs", type=int, default=2, help="processes with a thread each")
    parser.add_argument("--picture", type=Path, default=Path("docs/ablation.png"))
    arguments = parser.parse_args()
    if not arguments.shipped:
        write_json(SHIPPED, ablate(arguments.folder, arguments.pairs, arguments.n,
                                   arguments.steps, arguments.jobs))
    rows = attackers.shipped("ablation")
    arguments.picture.write_bytes(figures.png(figures.ablation(rows)))
    print(markdown(rows))


if __name__ == "__main__":
    main()
