"""Selection: which recipe the demo uses, chosen on the validation split.

One datum, a value of `data/demo/selection.json`: `{"highest_asr": R, "clean_utility": R,
"right": [R, R]}` with R = `{"value", "n", "low", "high"}`; `right` is the lowest and the highest
rate of right answers over the attacks.

`python -m secalign_kit.studies.selection` trains every candidate (a quarter of an hour on two
cores), and goes on where it was killed. The held-out test plays no part in it.

Limits: one seed; few candidates; 9,600 pairs each, where the demo has more.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from .. import evaluation, training
from ..config import recipe
from ..evaluation import Rate
from ..markdown import table
from ..models import Bundle
from . import summaries

SHIPPED = summaries.SHIPPED / "selection.json"
_PAPER = {"clean": 0.0, "sft_weight": 0.0}
CANDIDATES: dict[str, dict | None] = {
    "insecure model": None,
    "the paper's loss and pairs, rate 1e-3": _PAPER | {"learning_rate": 1e-3},
    "the paper's loss and pairs, rate 5e-4": _PAPER,
    "the paper's loss, 30% pairs without injection, rate 5e-4": {"sft_weight": 0.0},
    "the paper's pairs, chosen's log-likelihood too, rate 5e-4": {"clean": 0.0},
    "both additions, rate 5e-4 (the demo's)": {},
    "both additions, rate 1e-3": {"learning_rate": 1e-3},
}
"""What was tried -> how it differs from the demo's recipe; None is no training."""


def measure(bundle: Bundle, name: str, n: int) -> dict:
    """The rates of a model on the validation split, `n` samples attacked in five ways."""
    items = evaluation.evaluation_items(bundle, "validation", n)
    items = [item for item in items if item.attack != "retention"]
    summary = evaluation.summarize(evaluation.evaluate(bundle, items, progress=name))
    by_value = {key: sorted(summary[key].values(), key=lambda rate: rate.value)
                for key in ("asr", "accuracy_under_attack")}
    right = by_value["accuracy_under_attack"]
    return {"highest_asr": asdict(by_value["asr"][-1]),
            "clean_utility": asdict(summary["clean_utility"]),
            "right": [asdict(right[0]), asdict(right[-1])]}


def select(folder: str | Path = "runs/selection", n: int = 150, n_pairs: int = 9600) -> dict:
    """Trains and measures every candidate in turn; finished runs in `folder` are taken up again."""
    found = {}
    for number, (name, changes) in enumerate(CANDIDATES.items()):
        config = recipe("demo").replace(n_pairs=n_pairs, output=str(Path(folder, str(number))))
        if changes is None:
            found[name] = measure(training.base_model(config), name, n)
            continue
        config = config.replace(**changes)
        run = training.train(config, training.training_pairs(config),
                             training.probe_pairs(config, "validation", 64))
        found[name] = measure(run.bundle, name, n)
    return found


def markdown(found: dict) -> str:
    """The candidates as a Markdown table."""
    n = {key: next(iter(found.values()))[key]["n"] for key in ("highest_asr", "clean_utility")}
    rows = []
    for name, rates in found.items():
        low, high = (f"{rate['value']:.0%}" for rate in rates["right"])
        rows.append((name, *(Rate(**rates[key]).interval() for key in n), f"{low} to {high}"))
    return table(("recipe, on validation", f"highest ASR (n={n['highest_asr']})",
                  f"clean utility (n={n['clean_utility']})",
                  "right under attack, lowest to highest"), rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m secalign_kit.studies.selection",
                                     description="Try the demo's candidates on validation.")
    parser.add_argument("--folder", type=Path, default=Path("runs/selection"))
    parser.add_argument("--output", type=Path, default=SHIPPED)
    arguments = parser.parse_args()
    found = select(arguments.folder)
    training.write_json(arguments.output, found)
    print(markdown(found))


if __name__ == "__main__":
    main()
