"""Cards: the shipped adapters made anew, each with its model card.

One datum, a line of a card: `| naive | 0.0% [0.0, 1.3] | 0.0% [0.0, 1.3] | 0.3% [0.1, 1.9] |`, the
attack's success at the end, at the start and in the middle of the data.
"""

import json
from pathlib import Path

from .. import demo, evaluation, models, training
from ..config import RECIPES, recipe
from ..injections import POSITIONS
from ..markdown import card, table
from ..models import Bundle
from ..samples import write_text


def adapter_card(name: str, bundle: Bundle, n: int = 300) -> str:
    """The model card of a shipped adapter: asked as the demo asks, `n` samples attacked."""
    found = demo.measured(evaluation.evaluate(bundle, demo.questions(bundle, n)[:-1],
                                              progress=f"card of {name}"))
    places = found["places"]
    attacks = next(iter(places.values()))["asr"]
    rows = [(attack.replace("_", " "), *(p["asr"][attack].interval() for p in places.values()))
            for attack in attacks]
    rows += [(f"all, {kind}", *(str(p["obeyed"][kind]) for p in places.values()))
             for kind in next(iter(places.values()))["obeyed"]]
    rows.append(("right answer under all", *(str(p["right"]) for p in places.values())))
    yaml = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").strip()
    return card(
        f"Adapter `{name}` of the embedded model",
        "LoRA by SecAlign's preference optimization (DPO on injected pairs), for `data/model` in\n"
        f"4-bit. Made again by `secalign-kit adapters {name}`. Licence: Apache-2.0.",
        "## Measured on the held-out test, 95% Wilson intervals",
        table(("measure", "rate"), [("clean utility", found["clean_utility"]),
                                    ("retention", found["retention"]),
                                    (f"the worst of all: {found['worst']['attack']}",
                                     found["worst"]["rate"])]),
        f"How often an attack is obeyed, by its place in the data (n={n} for each attack and\n"
        "place; \"unseen\" are kinds of frames that no training pair shows):",
        table(("attack", *places), rows),
        "## Recipe", f"```yaml\n{yaml}\n```", "## Limits",
        f"Trained on injections {POSITIONS[recipe(name).position]} of the data.\n{_limits(name)}",
    )


def _limits(name: str) -> str:
    config = recipe(name)
    if not config.adversary_moves:
        return ("The attacks are texts written beforehand, in a small generated world; nothing is "
                "claimed\nabout attackers who adapt, or about other models.")
    begun = f", which began from `{config.start}`" if config.start else ""
    return (f"An attacker with gradients stood in the training loop{begun}. The attacks above are\n"
            "texts written beforehand, in a small generated world; what attackers who adapt reach\n"
            f"is measured by `secalign-kit attack {name}`. Nothing is claimed about other models.")


def make_adapter(name: str) -> Path:
    """Trains a shipped adapter by its recipe, measures it, and puts it with its card in `data/`.

    Raises ValueError for a name that is not in `models.ADAPTERS`.
    """
    if name not in models.ADAPTERS:
        raise ValueError(f"no shipped adapter {name!r}; choose {', '.join(models.ADAPTERS)}")
    config = recipe(name)
    run = training.train(config, training.training_pairs(config),
                         training.probe_pairs(config, "validation", 64))
    target = models.ADAPTERS[name]
    target.mkdir(parents=True, exist_ok=True)
    weights, settings = "adapter_model.safetensors", "adapter_config.json"
    (target / weights).write_bytes((run.folder / "adapter" / weights).read_bytes())
    evaluation.save_records(run.metrics, target / "metrics.jsonl")
    described = json.loads((run.folder / "adapter" / settings).read_text(encoding="utf-8"))
    described["base_model_name_or_path"] = "data/model"  # peft writes this machine's path
    described["target_modules"].sort()  # a set to peft, which writes it in any order
    training.write_json(target / settings, described)
    write_text(target / "README.md", adapter_card(name, run.bundle))
    return target
