"""The model card of the embedded model, its scores measured anew: `python -m ...toy.card [FOLDER]`.

FOLDER is what `toy.pretrain` left: the model, `pretraining.json` (settings) and `pretraining.jsonl`
(the loss on the way).
"""

import argparse
import json
from pathlib import Path

from .. import evaluation, injections, models
from ..markdown import card, table
from ..models import Bundle
from ..samples import DATA, shipped_samples, write_text
from .world import FAMILIES, make_samples

ABOUT = """
A `LlamaForCausalLM` (hidden {hidden}, {layers} layers, {heads} heads, {vocabulary:,} tokens of
byte-level BPE, {millions:.1f} M parameters, bf16 safetensors) trained from scratch on the generated
corpus of `secalign_kit/toy`. It is an instruct model of a small world, and insecure on purpose: it
obeys requests that stand in data. Use it to study injections, for nothing else.

Licence: Apache-2.0.

## Recipe

`python -m secalign_kit.toy.pretrain`, settings in `pretraining.json`:
{optimizer}, peak rate {learning_rate:g},
loss on responses only, bf16 products. Corpus and tokenizer follow from the seed. The corpus has no
sample in which a specific instruction with its data is overridden by a request in that data, and
none in which such a request is resisted; a test scans for both.
"""
LIMITS = """## Limits

The world has {families} task families over a few hundred words; outside it the model babbles. Data
of the families named in `world.CLOSED` (few texts each) were met in pre-training, so their scores
measure memory, and so do those of families without data.
"""


def model_card(bundle: Bundle, folder: Path) -> str:
    """The card as Markdown, with exact match by family and the witness attacks' success rates."""
    settings = json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in
           (folder / "pretraining.jsonl").read_text(encoding="utf-8").splitlines()]
    optimizer = ("Muon for the matrices of the layers and AdamW for the rest" if settings["muon"]
                 else "AdamW")
    # as many of each family; preference training, which the shipped test must not know, is to come
    drawn = make_samples(24 * len(FAMILIES), "heldout", seed=0)
    clean = evaluation.evaluate(bundle, evaluation.clean_items(drawn), progress="clean")
    families = evaluation.utility_by_family(clean)
    attacked = [item for attack in evaluation.ATTACKS for item in evaluation.attacked_items(
        shipped_samples("heldout"), attack, injections.WITNESS["heldout"], bundle)]
    summary = evaluation.summarize(evaluation.evaluate(bundle, attacked, progress="attacked"))
    about = ABOUT.format(**settings, millions=bundle.model.num_parameters() / 1e6,
                         optimizer=optimizer)
    rate = evaluation.summarize(clean)["clean_utility"]
    return card(
        "The embedded model", about,
        table(("steps", "nats per response token"),
              ((row["step"], f"{row['loss']:.3f}") for row in log)),
        "## Scores (held-out samples, greedy)",
        f"Exact match on clean samples, 24 of each family: {rate}.",
        table(("family", "exact match", "n"),
              ((name, f"{r.value:.0%}", r.n) for name, r in families.items())),
        table(("attack with the witness request", "obeyed"),
              ((name.replace("_", "-"), r) for name, r in summary["asr"].items())),
        LIMITS.format(families=len(FAMILIES)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the embedded model and write its card.")
    parser.add_argument("folder", type=Path, nargs="?", default=DATA / "model")
    folder = parser.parse_args().folder
    bundle = models.load(str(folder), four_bit=False, format="toy")
    write_text(folder / "README.md", model_card(bundle, folder))
    print(folder / "README.md")


if __name__ == "__main__":
    main()
