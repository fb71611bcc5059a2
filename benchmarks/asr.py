"""Evaluation of attacks: early verdicts, dropped rows and shared prefixes against plain loops.

The official test of the method decodes one prompt at a time, up to 512 tokens, and looks at the
text afterwards; that loop is written here anew, with the adapter apart from the weights as there.
"""

import tempfile
from pathlib import Path

import torch

from secalign_kit import evaluation, injections, models, prompts, shared_prefix
from secalign_kit.evaluation import Item
from secalign_kit.models import Bundle
from secalign_kit.samples import Sample, shipped_samples

from .dpo import random_model
from .measuring import Result, compare, take_turns, timed


def secure_bundle() -> Bundle:
    return models.load("toy", four_bit=False, adapter=models.ADAPTERS["secalign"])


def items_of(bundle: Bundle, attacks, n: int, statements: int = 0) -> list[Item]:
    """Clean and attacked items of `n` samples; `statements` sentences make their data longer."""
    hosts = [s for s in shipped_samples("heldout") if s.data][:n]
    hosts = [Sample(s.instruction, " ".join([s.data] + ["The weather is nice today."] * statements),
                    s.answer, s.family, s.id) for s in hosts]
    found = evaluation.clean_items(hosts) if "none" in attacks else []
    for attack in attacks:
        if attack != "none":
            found += evaluation.attacked_items(hosts, attack, injections.WITNESS["heldout"], bundle)
    return found


@torch.inference_mode()
def decode(bundle: Bundle, items: list[Item], batch_size: int, longest: int,
           lengths: list[int] | None = None) -> list[str]:
    """Responses by transformers' `generate`, in the order of the items.

    `lengths`, if given, gets the number of tokens of each, the end token excluded.
    """
    tokenizer, form = bundle.tokenizer, bundle.format
    end, pad = tokenizer.convert_tokens_to_ids(form.end), tokenizer.pad_token_id
    rows = [list(prompts.encode(tokenizer, form, i.instruction, i.data).ids) for i in items]
    texts = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        ids, mask = shared_prefix.left_padded(batch, pad, bundle.device)
        out = bundle.model.generate(input_ids=ids, attention_mask=mask, do_sample=False,
                                    max_new_tokens=longest, pad_token_id=pad, eos_token_id=end)
        if lengths is not None:
            lengths += [int((row != end).logical_and(row != pad).sum())
                        for row in out[:, ids.shape[1]:]]
        texts += tokenizer.batch_decode(out[:, ids.shape[1]:], skip_special_tokens=True)
    return [text.strip() for text in texts]


def as_users_do(bundle: Bundle, items: list[Item], **options) -> list[dict]:
    """Records by the path that the demo and the command line take, with a file of their own."""
    with tempfile.TemporaryDirectory() as folder:
        return evaluation.evaluate_file(bundle, items, Path(folder) / "records.jsonl", **options)


def against_the_loop(rounds: int, bundle: Bundle, state: str, items: list[Item], measure: str,
                     limit: str = "") -> Result:
    """Early verdicts against the one-by-one loop to 512 tokens, on the same items."""
    found, lengths = {}, []

    def ours(number: int) -> float:
        spent, records = timed(lambda: within(bundle, state, lambda: as_users_do(
            bundle, items, verdict_only=True)))
        found["ours"] = [record["obeyed"] for record in records]
        return spent

    def loop(number: int) -> float:
        lengths.clear()
        spent, texts = timed(lambda: within(bundle, state, lambda: decode(
            bundle, items, 1, 512, lengths)))
        found["loop"] = [evaluation.obeyed(t, i.witness)
                         for t, i in zip(texts, items, strict=True)]
        return spent

    seconds = take_turns({"ours": ours, "one by one, to 512 tokens": loop}, rounds, measure)
    differ = sum(a != b for a, b in zip(found["ours"], found["loop"], strict=True))
    words = f"{measure}, answers of {sum(lengths) / len(lengths):.0f} tokens"
    return compare(seconds, "one by one, to 512 tokens", words, len(items), "samples/s",
                   f"{differ} of {len(items)} verdicts differ", limit, goal=20)


def begins_with(rounds: int, n: int = 100) -> list[Result]:
    """One attack on the insecure and the secure model; six attacks; a model that answers at length.
    """
    bundle, limit = secure_bundle(), "fp32 products alone: about 16x"
    one = items_of(bundle, ("ignore",), n)
    results = [against_the_loop(rounds, bundle, state, one,
                                f"ASR, begins with, {state} model, one attack", limit)
               for state in ("secure", "insecure")]
    six = items_of(bundle, (*evaluation.ATTACKS, "ignore_after"), n // 2)
    results.append(against_the_loop(rounds, bundle, "secure", six,
                                    "ASR, begins with, secure model, six attacks on each sample"))
    talkative = models.load("toy", four_bit=False)  # lends its tokenizer
    talkative.model = random_model("2M").eval()
    results.append(against_the_loop(rounds, talkative, "secure", one[:8],
                                    "ASR, begins with, random 2M Llama, one attack"))
    return results


def within(bundle: Bundle, state: str, function):
    """Runs the function on the bundle as it is, or with its adapter off."""
    if state == "secure":
        return function()
    with models.insecure(bundle):
        return function()


def full_texts(rounds: int, n: int = 300) -> Result:
    bundle = secure_bundle()
    items = items_of(bundle, ("ignore",), n)
    found = {}

    def ours(number: int) -> float:
        spent, records = timed(lambda: as_users_do(bundle, items, max_new_tokens=96))
        found["ours"] = [record["response"] for record in records]
        return spent

    def batched(number: int) -> float:
        spent, found["batched"] = timed(lambda: decode(bundle, items, 128, 96))
        return spent

    seconds = take_turns({"ours": ours, "batched generate": batched}, rounds, "full texts")
    alone = decode(bundle, items, 1, 96)
    differ = {name: sum(a != b for a, b in zip(texts, alone, strict=True))
              for name, texts in found.items()}
    return compare(seconds, "batched generate", "ASR evaluation, full texts", n, "samples/s",
                   f"texts unlike one by one: ours {differ['ours']}, batched {differ['batched']} "
                   f"of {n}", goal=1.5)


def six_attacks(rounds: int, n: int = 100, statements: int = 0) -> Result:
    """One evaluation that shares what the attacks on a sample share, and one for each attack."""
    bundle = secure_bundle()
    attacks = (*evaluation.ATTACKS, "none")
    items = items_of(bundle, attacks, n, statements)
    apart = [[item for item in items if item.attack == attack] for attack in attacks]
    length = sum(len(prompts.encode(bundle.tokenizer, bundle.format, i.instruction, i.data))
                 for i in apart[-1]) / n
    found = {}

    def ours(number: int) -> float:
        spent, records = timed(lambda: as_users_do(bundle, items, verdict_only=True))
        found["ours"] = {(r["id"], r["attack"]): r["obeyed"] for r in records}
        return spent

    def separate(number: int) -> float:
        def all_of_them():
            texts = [decode(bundle, part, 128, 48) for part in apart]
            return [(item, text) for part, answers in zip(apart, texts, strict=True)
                    for item, text in zip(part, answers, strict=True)]

        spent, pairs = timed(all_of_them)
        found["separate"] = {(i.id, i.attack): evaluation.obeyed(t, i.witness) for i, t in pairs}
        return spent

    seconds = take_turns({"ours": ours, "six evaluations": separate}, rounds, "six attacks")
    differ = sum(found["ours"][key] != verdict for key, verdict in found["separate"].items())
    return compare(seconds, "six evaluations",
                   f"six attacks on the same samples, prompts of about {length:.0f} tokens",
                   len(items), "samples/s", f"{differ} of {len(items)} verdicts differ", goal=2)


def asr(rounds: int) -> list[Result]:
    return [*begins_with(rounds), full_texts(rounds), six_attacks(rounds),
            six_attacks(rounds, n=50, statements=20)]
