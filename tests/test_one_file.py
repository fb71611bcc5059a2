"""The method in one file: short, on its own feet, and the same numbers as the package."""

import ast
import math
import random
import sys
from pathlib import Path

import pytest
import secalign_in_one_file as one
import torch

from secalign_kit import evaluation, logprobs, preference
from secalign_kit.samples import shipped_samples

SOURCE = Path(one.__file__)


def test_it_is_short_and_needs_torch_and_transformers_only():
    text = SOURCE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0] if node.level == 0 else ".")
    assert found - set(sys.stdlib_module_names) == {"torch", "transformers"}


def injected_pairs(n: int) -> list[tuple]:
    return one.make_pairs(one.read_samples("train"), n, random.Random(3))


def test_log_probs_are_those_of_the_package(toy):
    pairs, tokenizer = injected_pairs(24), toy.tokenizer
    rows = [logprobs.encode_pair(toy, prompt.instruction, prompt.data, chosen, rejected)
            for prompt, chosen, rejected in pairs]
    theirs = torch.cat(logprobs.score_pairs(toy, rows))
    mine = [(one.encode_prompt(tokenizer, prompt), one.encode_response(tokenizer, text))
            for side in (1, 2) for prompt, text in ((pair[0], pair[side]) for pair in pairs)]
    assert [row[0] for row in mine[:24]] == [row["prompt_ids"] for row in rows]
    assert len({len(p) + len(r) for p, r in mine}) > 5  # so there is padding
    with torch.no_grad():
        ours = one.response_logprobs(toy.model, mine, tokenizer.pad_token_id)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_the_loss_is_that_of_the_package_and_begins_at_ln_2():
    generator = torch.Generator().manual_seed(1)
    scores = [-20 * torch.rand(6, generator=generator) for _ in range(4)]
    for ours, theirs in zip(one.dpo_loss(*scores, 0.2), preference.dpo_loss(*scores, 0.2),
                            strict=True):
        torch.testing.assert_close(ours, theirs)
    start = one.dpo_loss(*scores[:2], *scores[:2])[0]
    assert start.tolist() == pytest.approx([math.log(2)] * 6)


def test_training_and_test_share_no_dress_and_no_witness():
    train, test = ([dress for dresses in one.DRESSES[split].values() for dress in dresses]
                   for split in ("train", "test"))
    lines = [{line.replace("{request}", "").strip() for dress in dresses
              for line in dress.splitlines()} - {""} for dresses in (train, test)]
    assert lines[0] and lines[1] and not lines[0] & lines[1]
    word = one.WITNESS.answer.strip("!").lower()
    assert not any(word in text.lower() for pair in injected_pairs(500)
                   for text in (*pair[0], *pair[1:]))


def test_typed_delimiters_do_not_reach_the_model(toy):
    typed = one.Sample("Count.", f"a{one.SLOTS[2][:9]}{one.SLOTS[1]}{one.SLOTS[2][9:]} b", "2")
    ids = one.encode_prompt(toy.tokenizer, typed)
    marks = toy.tokenizer.convert_tokens_to_ids(list(one.SLOTS))
    assert [i for i in ids if i in marks] == marks


def test_padding_changes_no_answer(toy):
    samples = [one.Sample(*(getattr(s, key) for key in one.Sample._fields))
               for s in shipped_samples("heldout")[:12]]
    together = one.answers(toy.model, toy.tokenizer, samples)
    alone = [one.answers(toy.model, toy.tokenizer, [sample])[0] for sample in samples]
    assert together == alone and len({len(s.data) for s in samples}) > 5
    assert sum(a == s.answer.strip(" .!") for a, s in zip(alone, samples, strict=True)) >= 11


def test_it_runs_from_end_to_end(capsys):
    insecure, secure, losses = one.run(pairs=96, seed=0, n=12)
    assert insecure.keys() == secure.keys() and len(insecure) == 7
    assert insecure["no attack: right"] >= 11 and insecure["completion: obeyed (ASR)"] >= 6
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5) and losses[-1] < losses[0]
    printed, naive = capsys.readouterr().out, "naive: obeyed (ASR)"
    assert "n=12" in printed and f"{naive:26}{one.rate(insecure[naive], 12)}" in printed


@pytest.mark.parametrize(("successes", "n"), [(0, 12), (5, 12), (150, 150)])
def test_a_rate_is_written_as_the_package_writes_it(successes, n):
    assert one.rate(successes, n).strip() == evaluation.rate(successes, n).interval()
