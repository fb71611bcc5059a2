"""Selection: which recipe the demo uses, chosen on the validation split.

One datum, a value of `data/demo/selection.json`: `{"worst": R, "clean_utility": R, "retention": R,
"right": {"end": R, "start": R, "middle": R}}` with R = `{"value", "n", "low", "high"}`; `worst` is
of the attack, place and target that succeed most often.

`python -m secalign_kit.studies.selection` trains every candidate (half an hour on two cores), and
goes on where it was killed. The held-out test plays no part in it: its phrases, its kinds of frames
and its samples are others.

Limits: one seed; few candidates; 12,000 pairs each, where the demo has more. The shipped table was
made on a GPU, which rounds its 4-bit products a little differently.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from .. import evaluation, injections, training
from ..config import recipe
from ..evaluation import Rate
from ..markdown import table
from ..models import Bundle
from ..samples import write_json
from . import summaries

SHIPPED = summaries.SHIPPED / "selection.json"
_PAPER = {"naive": 0.9, "frames": 0.0, "position": "end"}
CANDIDATES: dict[str, dict | None] = {
    "insecure model": None,
    "Algorithm 1's pairs at the end, the paper's loss": _PAPER | {"clean": 0.0, "sft_weight": 0.0},
    "Algorithm 1's pairs at the end": _PAPER,
    "Algorithm 1's pairs everywhere": _PAPER | {"position": "everywhere"},
    "random frames everywhere (the demo's)": {},
    "random frames everywhere, the paper's loss": {"sft_weight": 0.0},
    "random frames everywhere, few bare payloads": {"naive": 0.1, "frames": 0.8},
    "random frames everywhere, LoRA rank 16": {"lora_r": 16, "lora_alpha": 16},
}
"""What was tried -> how it differs from the demo's recipe; None is no training."""


def measure(bundle: Bundle, folder: Path, name: str, n: int) -> dict:
    """The rates of a model on the validation split, `n` samples attacked in every way, anywhere.

    What `records.jsonl` in the folder already holds is not asked again.
    """
    attacks = [*evaluation.ATTACKS, *injections.unseen_attacks("validation").items()]
    items = evaluation.evaluation_items(bundle, "validation", n, "all", attacks,
                                        ("witness", "payload"))
    records = evaluation.evaluate_file(bundle, items, folder / "records.jsonl", chunk=len(items),
                                       progress=name)
    return {"worst": asdict(evaluation.worst(records)[1])} | still_right(records)


def still_right(records: list[dict]) -> dict:
    """Clean utility, retention, and right answers under attack at each place."""
    summary = evaluation.summarize(r for r in records if not r["position"])
    places = evaluation.by_place(records)
    return {"clean_utility": asdict(summary["clean_utility"]),
            "retention": asdict(summary["retention"]),
            "right": {place: asdict(found["right"]) for place, found in places.items()}}


def select(folder: str | Path = "runs/selection", n: int = 50, n_pairs: int = 12000) -> dict:
    """Trains and measures every candidate in turn; `folder` keeps the runs and their records."""
    found = {}
    for number, (name, changes) in enumerate(CANDIDATES.items()):
        config = recipe("demo").replace(n_pairs=n_pairs, output=str(Path(folder, str(number))))
        if changes is None:
            found[name] = measure(training.base_model(config), Path(config.output), name, n)
            continue
        config = config.replace(**changes)
        run = training.train(config, training.training_pairs(config),
                             training.probe_pairs(config, "validation", 64))
        found[name] = measure(run.bundle, run.folder, name, n)
    return found


def markdown(found: dict) -> str:
    """The candidates as a Markdown table."""
    first = next(iter(found.values()))
    asked = {"worst": "worst attack obeyed", "clean_utility": "clean utility",
             "retention": "retention"}
    head = [f"{words} (n={first[key]['n']})" for key, words in asked.items()]
    right = [f"right, {place} (n={rate['n']})" for place, rate in first["right"].items()]
    rows = [(name, *(Rate(**rates[key]).interval() for key in asked),
             *(f"{rate['value']:.1%}" for rate in rates["right"].values()))
            for name, rates in found.items()]
    return table(("recipe, on validation", *head, *right), rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m secalign_kit.studies.selection",
                                     description="Try the demo's candidates on validation.")
    parser.add_argument("--folder", type=Path, default=Path("runs/selection"))
    parser.add_argument("--output", type=Path, default=SHIPPED)
    arguments = parser.parse_args()
    found = select(arguments.folder)
    write_json(arguments.output, found)
    print(markdown(found))


if __name__ == "__main__":
    main()
