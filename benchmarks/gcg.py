"""GCG beside nanoGCG 0.2.3: the same candidates, the same losses, and how many steps a second.

nanoGCG is no dependency of the kit: `pip install --no-deps --target runs/nanogcg nanogcg==0.2.3`.
Its prefix cache does not work with this version of transformers, so it runs without. Both draw
their candidates by our `exchanges` and `distinct` here, so that both ask for the same 48 fills in
each step, and nanoGCG's own filter, which is slower, is not counted against it.
"""

import logging
import sys
from pathlib import Path

import torch

from secalign_kit import attackers, evaluation, injections, models, prompts, shared_prefix
from secalign_kit.attackers import blanks, search
from secalign_kit.attackers.gcg import exchanges
from secalign_kit.evaluation import Item
from secalign_kit.models import Bundle
from secalign_kit.samples import Sample, shipped_samples

from .asr import secure_bundle
from .measuring import Result, compare, take_turns, timed

SIZE, TOP = 12, 256


def nanogcg():
    """The module. Raises SystemExit, saying how to get it."""
    sys.path.insert(0, str(Path("runs") / "nanogcg"))
    try:
        import nanogcg
        import nanogcg.gcg
    except ImportError:
        raise SystemExit("install nanoGCG first: pip install --no-deps --target runs/nanogcg "
                         "nanogcg==0.2.3") from None
    logging.getLogger("nanogcg").setLevel(logging.ERROR)  # it tells of every step
    nanogcg.gcg.tqdm = lambda steps: steps
    return nanogcg


def items_of(bundle: Bundle, statements: int) -> list[Item]:
    """Attacked items; `statements` sentences make their data longer."""
    hosts = [Sample(s.instruction, " ".join(["The weather is nice today."] * statements + [s.data]),
                    s.answer, s.family, s.id) for s in shipped_samples("heldout") if s.data][:6]
    return evaluation.attacked_items(hosts, "naive", injections.WITNESS["heldout"], bundle)


def theirs(bundle: Bundle, item: Item, steps: int, candidates: int, seed: int) -> list[float]:
    """nanoGCG's losses for an item, summed over the target's tokens as ours are."""
    module, blank = nanogcg(), blanks.make(bundle, item, size=SIZE)
    generator, usable = search.seeded(seed, item), blanks.tokens(bundle)

    def sample(ids, grad, *rest, **options):
        present = tuple(ids.tolist())
        draw = exchanges(grad, present, usable, TOP, generator)
        return search.distinct(blank, draw, candidates)

    module.gcg.sample_ids_from_grad, module.gcg.filter_ids = sample, lambda ids, tokenizer: ids
    config = module.GCGConfig(num_steps=steps, optim_str_init="".join(blank.texts(blank.first)),
                              search_width=candidates, use_prefix_cache=False, verbosity="ERROR")
    before = prompts.render(bundle.format, item.instruction, item.data)
    message = before.removesuffix(bundle.format.response) + "{optim_str}" + bundle.format.response
    tokenizer, template = bundle.tokenizer, bundle.tokenizer.chat_template
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    try:
        found = module.run(shared_prefix.base_of(bundle.model), tokenizer, message,
                           tokenizer.decode(blank.target), config)
    finally:
        tokenizer.chat_template = template
    return [loss * len(blank.target) for loss in found.losses]


def against_nanogcg(rounds: int, statements: int = 0, steps: int = 12,
                    candidates: int = 48) -> Result:
    bundle = secure_bundle()
    items, curves = items_of(bundle, statements), {}
    length = sum(len(prompts.encode(bundle.tokenizer, bundle.format, i.instruction, i.data))
                 for i in items) / len(items)

    def ours(number: int) -> float:
        spent, outcome = timed(lambda: attackers.gcg(
            bundle, items[number % len(items)], attackers.Budget(steps, candidates), number,
            top=TOP, size=SIZE))
        curves["ours", number] = outcome.losses[1:]
        return spent

    def other(number: int) -> float:
        with models.merged(bundle):
            spent, curves["theirs", number] = timed(lambda: theirs(
                bundle, items[number % len(items)], steps, candidates, number))
        return spent

    seconds = take_turns({"ours": ours, "nanoGCG 0.2.3": other}, rounds, "GCG")
    apart = [abs(a - b) for number in range(rounds)
             for a, b in zip(curves["ours", number], curves["theirs", number], strict=True)]
    return compare(seconds, "nanoGCG 0.2.3",
                   f"GCG, {candidates} candidates, prompt of {length:.0f} tokens, suffix of {SIZE}",
                   steps, "steps/s", f"losses of {len(apart)} steps within {max(apart):.1e} nats",
                   goal=4)


def gcg(rounds: int) -> list[Result]:
    torch.manual_seed(0)
    return [against_nanogcg(rounds), against_nanogcg(rounds, statements=20)]
