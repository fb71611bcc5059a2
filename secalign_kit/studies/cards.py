"""Cards: the shipped adapters made anew, each with its model card.

One datum, a line of a card: `| asr naive, injections at the start | 77.3% [73.6, 80.6] (n=555) |`
"""

import json
from pathlib import Path

from .. import evaluation, models, training
from ..config import RECIPES, recipe
from ..injections import POSITIONS
from ..markdown import card, table
from ..models import Bundle
from ..samples import write_text


def adapter_card(name: str, bundle: Bundle) -> str:
    """The model card of a shipped adapter, its rates measured on the held-out test.

    With injections at the end of the data, and elsewhere.
    """
    summaries = {}
    for place, words in POSITIONS.items():
        items = evaluation.evaluation_items(bundle, position=place)
        records = evaluation.evaluate(bundle, items, progress=f"injections {words}")
        summaries[place] = evaluation.summarize(records)
    rows = list(evaluation.flatten(summaries.pop("end")))
    rows += [(f"{key}, injections {POSITIONS[place]}", value) for place, found in summaries.items()
             for key, value in evaluation.flatten({"asr": found["asr"]})]
    yaml = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").strip()
    return card(
        f"Adapter `{name}` of the embedded model",
        "LoRA by SecAlign's preference optimization (DPO on injected pairs), for `data/model` in\n"
        f"4-bit. Made again by `secalign-kit adapters {name}`. Licence: Apache-2.0.",
        "## Measured on the held-out test, 95% Wilson intervals",
        "Injections stand at the end of the data where nothing else is said.",
        table(("measure", "rate"), rows),
        "## Recipe", f"```yaml\n{yaml}\n```", "## Limits",
        f"Trained on injections {POSITIONS[recipe(name).position]} of the data. The rates are of\n"
        "fixed attacks in a small generated world; nothing is claimed about adaptive attacks or\n"
        "other models.",
    )


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
