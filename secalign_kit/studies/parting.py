"""The diagram along a training: the two pictures of the README, from one recorded run.

One datum, `data/demo/diagram.json`: `{"insecure_answer": "No, dinosaurs are extinct.",
"secure_answer": "def is_prime(x): ...", "log": [{"step": 0, "chosen_logprob": -2.6,
"rejected_logprob": -0.1}, ...]}`, in nats of the diagram's own pair, which is never trained on.

`python -m secalign_kit.studies.parting` trains the demo's recipe on a quarter of its pairs (two
minutes on two cores), goes on where it was killed, and draws; `--shipped` only draws what was
recorded.
"""

import argparse
import json
from pathlib import Path

from .. import evaluation, figures, models, pairs, training
from ..config import RunConfig, recipe
from ..samples import DINOSAUR_HOST, DINOSAUR_PAYLOAD, write_json
from . import summaries

SHIPPED = summaries.SHIPPED / "diagram.json"
_KEPT = ("step", "chosen_logprob", "rejected_logprob")


def record(config: RunConfig) -> dict:
    """Trains by `config`, with the diagram's pair as the probe; what `draw` needs."""
    probe = pairs.pairs_dataset([DINOSAUR_HOST, DINOSAUR_PAYLOAD], seed=0, n=1, naive=1)
    run = training.train(config, training.training_pairs(config), probe)
    item = evaluation.diagram_item()
    request = [(item.instruction, item.data)]
    with models.insecure(run.bundle):
        insecure = evaluation.generate(run.bundle, request)[0]
    rows = [{key: round(row[key], 3) for key in _KEPT} for row in run.metrics if _KEPT[1] in row]
    return {"insecure_answer": insecure,
            "secure_answer": evaluation.generate(run.bundle, request)[0], "log": rows}


def measured(found: dict) -> dict:
    """What `figures.diagram` draws of a recorded run: the first and the last step."""
    ends = {"before": found["log"][0], "after": found["log"][-1]}
    return {f"{role}_{when}": row[f"{role}_logprob"] for role in ("chosen", "rejected")
            for when, row in ends.items()} | {name: found[name] for name in found if name != "log"}


def draw(found: dict, folder: Path) -> list[Path]:
    """Writes `diagram.png` and `parting.gif`."""
    made = {"diagram.png": figures.png(figures.diagram(measured(found))),
            "parting.gif": figures.gif(figures.parting(found["log"]))}
    for name, content in made.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in made]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m secalign_kit.studies.parting",
                                     description="Record the diagram along a training; draw it.")
    parser.add_argument("--shipped", action="store_true", help="draw what was recorded")
    parser.add_argument("--folder", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    if not arguments.shipped:
        config = recipe("demo").replace(n_pairs=6400, probe_every=4, output="runs/parting")
        write_json(SHIPPED, record(config))
    found = json.loads(SHIPPED.read_text(encoding="utf-8"))
    print(*draw(found, arguments.folder), sep="\n")


if __name__ == "__main__":
    main()
