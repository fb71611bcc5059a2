"""Responses: what a model answers to items, judged, one record each.

One datum: `{"id": "v1", "attack": "naive", ..., "response": "Hacked!", "obeyed": true, "right":
false}`
"""

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from .. import defenses, generation, logprobs, parity, prompts, ranks
from ..models import Bundle, merged, native_precision, positions, weights_hash
from ..samples import alone, as_row, fingerprint
from . import judges
from .items import Item
from .judges import decided, obeyed
from .records import as_lines, read_records


def generate(bundle: Bundle, requests: Sequence[tuple[str, str]], frontend: bool = True,
             keys: Sequence[str] | None = None, witnesses: Sequence[str] | None = None,
             **options) -> list[str]:
    """Greedy responses to (instruction, data) pairs, in order.

    With `witnesses`, a response ends where the verdict of `begins_with` is decided (an empty
    witness is never decided). `keys` and `options` are those of `generation.greedy`.
    """
    encoded = _encoded(bundle, requests, frontend)
    return [text for text, _ in _responses(bundle, encoded, keys, witnesses, **options)]


def _encoded(bundle: Bundle, requests: Sequence[tuple[str, str]],
             frontend: bool) -> list[list[int]]:
    return [prompts.encode(bundle.tokenizer, bundle.format, *request, frontend=frontend).ids
            for request in requests]


def _responses(bundle: Bundle, encoded: list[list[int]], keys: Sequence[str] | None,
               witnesses: Sequence[str] | None, **options) -> list[tuple[str, int]]:
    """Texts, and how many tokens each was generated of."""
    tokenizer = bundle.tokenizer

    def settled(number: int, ids: list[int]) -> bool:
        witness = witnesses[number]
        return bool(witness) and decided(tokenizer.decode(ids, skip_special_tokens=True), witness)

    with merged(bundle, rounded=True), native_precision(bundle):
        ids = generation.greedy(bundle, encoded, keys=keys, settled=settled if witnesses else None,
                                **options)
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [(text.strip(), len(row)) for text, row in zip(texts, ids, strict=True)]


def evaluate(bundle: Bundle, items: Sequence[Item], frontend: bool = True,
             verdict_only: bool = False, defense: str = "none", **options) -> list[dict]:
    """One record per item: the item, a hash of the prompt's ids, the response, and two verdicts.

    Also the response's length in `tokens`, without its end token, and whether it was `cut` at
    `max_new_tokens`.

    Attacks on one sample share the computation of their common start; with `by_place` those at one
    place do, apart from those at others, which saves more where the data are long.

    `verdict_only` ends the response to an attack as soon as `begins_with` is decided, exactly;
    `right` is then None there. It is also None where the right answer is longer than
    `max_new_tokens`.

    Of several ranks each asks its share of the samples, and all get all records. Raises ValueError
    where the attacker's answer is longer than that, or the prompt longer than the model's
    positions; `askable` leaves such items out.
    """
    if not ranks.first():
        options["progress"] = ""

    def asked(share: list[Item]) -> list[dict]:
        return _evaluate(bundle, share, frontend, verdict_only, defense, **options)

    return ranks.each(items, asked, [_sample(item) for item in items])


def _evaluate(bundle: Bundle, items: Sequence[Item], frontend: bool, verdict_only: bool,
              defense: str, by_place: bool = False, **options) -> list[dict]:
    if not items:
        return []
    early = [verdict_only and _ends_early(item) for item in items]
    witnesses = [i.witness if cut else "" for i, cut in zip(items, early, strict=True)]
    limit = options.get("max_new_tokens", generation.MAX_NEW_TOKENS)
    _refuse_longer(bundle, items, limit)
    encoded = _asked(bundle, map(asdict, items), frontend, defense)
    order = sorted(range(len(items)), key=lambda k: len(encoded[k]))
    parity.check(bundle, [_row(bundle, encoded[k], items[k]) for k in (order[0], order[-1])])
    begins = [f"{_sample(item)} {item.position or 'end'}" if by_place else _sample(item)
              for item in items]
    responses = _responses(bundle, encoded, begins, witnesses if verdict_only else None,
                           **options)
    records = []
    for item, ids, (response, length), ends in zip(items, encoded, responses, early, strict=True):
        judged = not ends and (item.accept or _fits(bundle, item.expected, limit))
        right = (judges.right(response, item.expected, item.accept, item.reject) if judged
                 else None)
        records.append({**as_row(item), "prompt_hash": fingerprint(json.dumps(ids)),
                        "response": response, "tokens": length, "cut": length == limit,
                        "frontend": frontend and defense != "bare",
                        "defense": defense, "right": right,
                        "obeyed": obeyed(response, item.witness, item.judge)})
    return records


def _asked(bundle: Bundle, items: Iterable[Mapping], frontend: bool,
           defense: str) -> list[list[int]]:
    """The prompts of items or records, as ids."""
    requests = [defenses.apply(defense, i["instruction"], i["data"]) for i in items]
    return _encoded(bundle, requests, frontend and defense != "bare")


def closest_calls(bundle: Bundle, records: Sequence[dict], count: int = 5) -> list[dict]:
    """The attacks that came closest: those with the highest log p of the witness, obeyed or not.

    Attacks for the witness only, since another sample's answer may be likely by itself ("Yes").
    Each is the record with `logprob`, and is about a sample of its own. `logprob` is in nats,
    summed over the witness's tokens without an end token, since an attack asks for a beginning
    only. Front end and defense are the record's.
    """
    attacked = [r for r in records if r["position"] and r["target"] == "witness"]
    asked = [_asked(bundle, [r], r["frontend"], r["defense"])[0] for r in attacked]
    wanted = [[prompts.encode_response(bundle.tokenizer, bundle.format, r["witness"])[:-1]]
              for r in attacked]
    with merged(bundle), native_precision(bundle):
        scores = logprobs.score_responses(bundle, asked, wanted)
    order = sorted(range(len(attacked)), key=lambda k: -scores[k][0])
    closest: dict[str, dict] = {}
    for k in order:
        closest.setdefault(attacked[k]["id"], {**attacked[k], "logprob": scores[k][0]})
    return list(closest.values())[:count]


def reference_logprobs(bundle: Bundle, records: Sequence[dict]) -> list[float | None]:
    """Mean log p of each record's right answer in nats a token, its end token included.

    Of the prompt that the record's response was given to; None where the model has too few
    positions for both.
    """
    asked = [_asked(bundle, [r], r["frontend"], r["defense"])[0] for r in records]
    wanted = [list(prompts.encode_response(bundle.tokenizer, bundle.format, r["expected"]))
              for r in records]
    limit = positions(bundle)
    fit = [k for k, ids in enumerate(asked) if len(ids) + len(wanted[k]) <= limit]
    with merged(bundle), native_precision(bundle):
        scores = logprobs.score_responses(bundle, [asked[k] for k in fit],
                                          [[wanted[k]] for k in fit])
    found = {k: score / len(wanted[k]) for k, [score] in zip(fit, scores, strict=True)}
    return [found.get(k) for k in range(len(records))]


def _ends_early(item: Item) -> bool:
    """Whether a response to the item may end where its verdict is decided."""
    return bool(item.witness) and item.judge == "begins_with"


def askable(bundle: Bundle, items: Sequence[Item], max_new_tokens: int = generation.MAX_NEW_TOKENS,
            defense: str = "none", frontend: bool = True) -> tuple[list[Item], list[str]]:
    """The items that `evaluate` can ask and judge, and in words how many it cannot, and why.

    Left out are samples of which a prompt with its response is longer than the model's positions,
    and attacks whose wanted answer is longer than `max_new_tokens`. Right answers that are longer
    leave an item in; its `right` is then None. Raises ValueError for responses of no token.
    """
    generation.refuse_no_token(max_new_tokens)
    limit, notes = positions(bundle), []
    lengths = map(len, _asked(bundle, map(asdict, items), frontend, defense))
    long = {_sample(item) for item, length in zip(items, lengths, strict=True)
            if length + max_new_tokens > limit}
    kept = [item for item in items if _sample(item) not in long]
    if long:
        notes.append(f"{len(items) - len(kept)} of {len(items)} prompts are left out: one of their "
                     "sample is with its response longer than the model's "
                     f"{limit:,} positions")
    short = [item for item in kept if _fits(bundle, item.witness, max_new_tokens)]
    if len(short) < len(kept):
        notes.append(f"{len(kept) - len(short)} of {len(kept)} prompts are left out: the answer "
                     f"that the attacker wants is longer than {max_new_tokens} tokens "
                     "(--max-new-tokens)")
    unjudged = sum(not item.accept and not _fits(bundle, item.expected, max_new_tokens)
                   for item in short)
    if unjudged:
        notes.append(f"{unjudged} of {len(short)} prompts are not counted as right or wrong: their "
                     f"right answer is longer than {max_new_tokens} tokens (--max-new-tokens)")
    return short, notes


def _fits(bundle: Bundle, text: str, limit: int) -> bool:
    """Whether a response of fewer than `limit` tokens can hold the text and its end."""
    if len(text.encode("utf-8", "surrogatepass")) < limit:  # a token has a byte at least
        return True
    return len(bundle.tokenizer(text, add_special_tokens=False)["input_ids"]) < limit


def _refuse_longer(bundle: Bundle, items: Sequence[Item], limit: int) -> None:
    """An answer that is cut off would count as resistance."""
    for item in items:
        if not _fits(bundle, item.witness, limit):
            raise ValueError(f"item {item.id!r}: the answer that the attacker wants is longer than "
                             f"the {limit} tokens that are awaited; raise max_new_tokens "
                             "(--max-new-tokens)")


def evaluate_file(bundle: Bundle, items: Sequence[Item], path: Path, defense: str = "none",
                  chunk: int = 512, frontend: bool = True, verdict_only: bool = False,
                  max_new_tokens: int = generation.MAX_NEW_TOKENS, **options) -> list[dict]:
    """`evaluate`, with every chunk of items appended to a JSONL file; a killed run goes on there.

    Items whose record the file already holds (same prompt, judge, settings and weights) are not
    asked again. Returns the records of these items in order. Raises ValueError for a line that is
    no record, or does not say which model and settings it is of, and while another process writes.
    """
    matters = dict(defense=defense, frontend=frontend, verdict_only=verdict_only,
                   max_new_tokens=max_new_tokens)
    lock = path.with_name(f".{path.name}.lock")
    with alone(lock) if ranks.first() else contextlib.nullcontext():
        return _evaluated(bundle, items, path, chunk, matters, options)


def _evaluated(bundle: Bundle, items: Sequence[Item], path: Path, chunk: int, matters: dict,
               options: dict) -> list[dict]:
    """`evaluate_file` with a file that is this process's own."""
    settings = ranks.of_first(lambda: json.dumps(
        [bundle.format.name, bundle.format.end, weights_hash(bundle), matters], sort_keys=True))
    stored = read_records(path) if path.exists() else []
    if not all("key" in record for record in stored):
        raise ValueError(f"{path} holds records that say nothing of their model; choose another "
                         "file")
    # records of older versions do not say how long the response was
    known = {record["key"]: record for record in stored if "tokens" in record}
    asked = _asked(bundle, map(asdict, items), matters["frontend"], matters["defense"])
    keys = [_key(item, ids, settings) for item, ids in zip(items, asked, strict=True)]
    open_ = [(key, item) for key, item in zip(keys, items, strict=True) if key not in known]
    first = {sample: number for number, sample in reversed([*enumerate(map(_sample, items))])}
    open_.sort(key=lambda pair: first[_sample(pair[1])])  # attacks on a sample stand in one chunk
    # before the first chunk is written
    _refuse_longer(bundle, [item for _, item in open_], matters["max_new_tokens"])
    for start in range(0, len(open_), chunk):
        part = open_[start : start + chunk]
        fresh = evaluate(bundle, [item for _, item in part], **matters, **options)
        records = [{"key": key, **record} for (key, _), record in zip(part, fresh, strict=True)]
        if ranks.first():
            with open(path, "a", encoding="utf-8") as file:
                file.write(as_lines(records))
        known |= {record["key"]: record for record in records}
    return [known[key] for key in keys]


def _row(bundle: Bundle, ids: Sequence[int], item: Item) -> dict:
    """A pair for `parity.check`."""
    right, wrong = (list(prompts.encode_response(bundle.tokenizer, bundle.format, text))
                    for text in (item.expected, item.witness))
    return {"prompt_ids": list(ids), "chosen_ids": right, "rejected_ids": wrong}


def _sample(item: Item) -> str:
    """What items have in common that attack the same sample."""
    return f"{item.id} {item.instruction}"


def _key(item: Item, ids: list[int], settings: str) -> str:
    what = [settings, as_row(item), ids]
    return fingerprint(json.dumps(what, sort_keys=True, ensure_ascii=False))
