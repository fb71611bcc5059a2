"""DPO training: this kit's shared-prefix trainer against TRL's DPOTrainer, end to end.

Each round takes new pairs, as texts, through tokenization, reference log-probs and one epoch.
"TRL defaults" sets nothing but the batch; "TRL tuned" turns checkpointing off, computes the
reference once, and multiplies in the precision in which ours does: fp32, with 4 bits bf16 where the
CPU has it. Both train the same LoRA on the same model.
"""

import argparse
import functools
import statistics
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer

from secalign_kit import models, prompts, training
from secalign_kit.config import RunConfig, recipe

from .measuring import Result, compare, peak_memory, ratio_by_round, take_turns, timed

SIZES = {  # of random Llamas, in the shapes of small published models
    "2M": dict(vocab_size=2048, hidden_size=192, intermediate_size=512, num_hidden_layers=4,
               num_attention_heads=6),
    "10M": dict(vocab_size=8192, hidden_size=320, intermediate_size=864, num_hidden_layers=6,
                num_attention_heads=5),
    "135M": dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                 num_attention_heads=9, num_key_value_heads=3),
}


def config_of(n_pairs: int, four_bit: bool, seed: int) -> RunConfig:
    return recipe("demo").replace(n_pairs=n_pairs, four_bit=four_bit, seed=seed, sft_weight=0.,
                                       clean=0.0, save_steps=10**6)


def ours(config: RunConfig, folder: Path) -> tuple[float, Dataset]:
    """Seconds from pairs to trained adapter, and the encoded pairs."""
    bundle = models.load("toy", four_bit=config.four_bit)
    pairs = training.training_pairs(config)

    def job():
        rows = training.prepare(config, bundle, pairs, progress=False)
        training.build_trainer(config, bundle, rows, folder).train()
        return rows

    return timed(job)


def theirs(config: RunConfig, folder: Path, tuned: bool) -> tuple[float, Dataset]:
    """The same with TRL's DPOTrainer as its documentation shows it."""
    bundle = models.load("toy", four_bit=config.four_bit)
    form = bundle.format
    texts = Dataset.from_list([
        {"prompt": prompts.render(form, *prompts.messages_to_parts(pair["prompt"])),
         "chosen": pair["chosen"][0]["content"], "rejected": pair["rejected"][0]["content"]}
        for pair in training.training_pairs(config)
    ])
    better = dict(gradient_checkpointing=False, bf16=models.multiplies_in_bf16(bundle),
                  precompute_ref_log_probs=True, precompute_ref_batch_size=64,
                  logging_strategy="no") if tuned else {}
    arguments = DPOConfig(
        output_dir=str(folder), per_device_train_batch_size=config.batch_size, num_train_epochs=1,
        learning_rate=config.learning_rate, max_length=config.max_length, report_to="none",
        disable_tqdm=True, save_strategy="no", use_cpu=True, dataloader_pin_memory=False, **better)
    lora = models.lora(config.lora_r, config.lora_alpha, config.lora_dropout, config.lora_targets)

    def job():
        trainer = DPOTrainer(bundle.model, args=arguments, train_dataset=texts, peft_config=lora,
                             processing_class=bundle.tokenizer)
        models.keep_gradients(trainer.model)  # or 4-bit would silently stop learning on some CPUs
        trainer.train()
        return trainer.train_dataset

    return timed(job)


CONTENDERS = {
    "ours": ours,
    "TRL defaults": lambda config, folder: theirs(config, folder, tuned=False),
    "TRL tuned": lambda config, folder: theirs(config, folder, tuned=True),
}


def run_one(name: str, n_pairs: int, four_bit: bool, seed: int) -> tuple[float, Dataset]:
    with tempfile.TemporaryDirectory() as folder:
        return CONTENDERS[name](config_of(n_pairs, four_bit, seed), Path(folder))


def seconds_of(name: str, n_pairs: int, four_bit: bool, number: int) -> float:
    """Seconds of one round; each round has pairs of its own, so that no cache answers."""
    return run_one(name, n_pairs, four_bit, number + 1)[0]


def token_limit(rows) -> str:
    """Tokens of two sequences a pair to those of one, which is what sharing the prompt can save."""
    prompt, both = (sum(sum(len(row[key]) for key in keys) for row in rows)
                    for keys in (("prompt_ids",), ("chosen_ids", "rejected_ids")))
    return f"{(2 * prompt + both) / (prompt + both):.2f}x by tokens"


def parity(four_bit: bool, n_pairs: int = 64) -> tuple[str, str]:
    """The largest difference of reference log-probs, and the limit by tokens.

    Stops if the tokens are not the same, or the log-probs differ by more than rounding.
    """
    mine = run_one("ours", n_pairs, four_bit, 99)[1]
    other = run_one("TRL tuned", n_pairs, four_bit, 99)[1]
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert list(mine[column]) == list(other[column]), f"{column} differ"
    gap = max(
        (torch.tensor(mine[c]) - torch.tensor(other[c])).abs().max().item()
        for c in ("ref_chosen_logps", "ref_rejected_logps")
    )
    rounding = 0.25 if four_bit and models.has_bf16("cpu") else 1e-3  # nats, of a whole response
    assert gap < rounding, f"reference log-probs differ by {gap} nats"
    return f"same tokens; reference log p within {gap:.1e} nats", token_limit(mine)


def embedded(rounds: int, n_pairs: int = 320) -> list[Result]:
    results = []
    for four_bit in (False, True):
        name = f"DPO training, embedded model, 4-bit {'on' if four_bit else 'off'}"
        checked, limit = parity(four_bit)
        seconds = take_turns(
            {c: functools.partial(seconds_of, c, n_pairs, four_bit) for c in CONTENDERS},
            rounds, name)
        results += [compare(seconds, other, name, n_pairs, "pairs/s", checked, limit, goal)
                    for other, goal in (("TRL defaults", 2.5), ("TRL tuned", 1.5))]
    return results


def memory(rounds: int, n_pairs: int = 320) -> list[Result]:
    """Peak memory of whole processes; `ratio` is theirs to ours, above 1 when we need less."""
    results = []
    for four_bit in (False, True):
        name = f"peak memory of training, embedded model, 4-bit {'on' if four_bit else 'off'}"
        used = take_turns({who: lambda number, who=who, four_bit=four_bit: peak_memory(
            "benchmarks.dpo", who, str(n_pairs), str(int(four_bit)))
            for who in ("ours", "TRL tuned")}, rounds, name)
        middle = {who: statistics.median(megabytes) for who, megabytes in used.items()}
        results.append(Result(name, "TRL tuned", "MB", middle["ours"], middle["TRL tuned"],
                              *ratio_by_round(used["ours"], used["TRL tuned"]),
                              "one process each", goal=1.0))
    return results


def random_model(size: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES[size], attn_implementation="sdpa"))
    return model.requires_grad_(False)


def step_seconds(size: str, prompt: int, response: int, batch: int, rounds: int) -> Result:
    """One forward and backward pass of a batch of random pairs: shared against TRL's own."""
    vocabulary = SIZES[size]["vocab_size"]
    draw = torch.Generator().manual_seed(prompt)

    def ids(length: int) -> list[int]:
        return torch.randint(10, vocabulary, (length,), generator=draw).tolist()

    rows = Dataset.from_list([
        {"prompt_ids": ids(prompt), "chosen_ids": ids(response), "rejected_ids": ids(response),
         "ref_chosen_logps": -1.0, "ref_rejected_logps": -1.0} for _ in range(batch)])
    steps, losses = {}, {}
    for name, shared in (("ours", True), ("TRL tuned", False)):
        bundle = models.load("toy", four_bit=False)  # lends its tokenizer
        bundle.model = random_model(size)
        config = config_of(batch, False, 0).replace(
            batch_size=batch, max_length=prompt + 2 * response, shared_prefix=shared,
            lora_targets=("q_proj", "v_proj"))
        trainer = training.build_trainer(config, bundle, rows, Path(tempfile.mkdtemp()))
        trainer.precompute_ref_logps = True  # TRL too reads the reference from the rows
        inputs = trainer._prepare_inputs(trainer.data_collator(list(rows)))

        def step(number: int, trainer=trainer, inputs=inputs, name=name) -> float:
            def both():
                loss = trainer.compute_loss(trainer.model, inputs)
                loss.backward()
                trainer.model.zero_grad()
                return loss.item()

            spent, losses[name] = timed(both)
            return spent

        steps[name] = step
    label = f"DPO step, random {size} Llama, prompt {prompt}, responses {response}"
    seconds = take_turns(steps, rounds, label)
    gap = abs(losses["ours"] - losses["TRL tuned"])
    assert gap < 1e-4, f"losses differ by {gap}"
    limit = (2 * prompt + 2 * response) / (prompt + 2 * response)
    return compare(seconds, "TRL tuned", label, batch, "pairs/s", f"loss within {gap:.1e}",
                   f"{limit:.2f}x by tokens", 1.5 if (size, prompt) == ("135M", 256) else None)


def growth(rounds: int) -> list[Result]:
    """Prompt length at one size, then size at one length."""
    results = [step_seconds("10M", prompt, 32, 8, rounds) for prompt in (16, 64, 256, 1024)]
    results.append(step_seconds("10M", 64, 128, 8, rounds))  # long responses: little to share
    results += [step_seconds(size, 256, 32, batch, rounds)
                for size, batch in (("2M", 8), ("135M", 2))]
    return results


def by_pairs(rounds: int) -> list[Result]:
    """End to end with ever more pairs; one round each but of the first, or it would take hours."""
    results, (checked, limit) = [], parity(False)
    for n_pairs in (1000, 5000, 20_000):
        seconds = {"ours": [], "TRL tuned": []}
        for number in range(rounds if n_pairs == 1000 else 1):
            for name, spent in seconds.items():
                spent.append(seconds_of(name, n_pairs, False, n_pairs + number))
        results.append(compare(seconds, "TRL tuned", f"DPO training, {n_pairs:,} pairs", n_pairs,
                               "pairs/s", checked, limit))
    return results


if __name__ == "__main__":  # one contender, for its peak memory
    parser = argparse.ArgumentParser()
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("n_pairs", type=int)
    parser.add_argument("four_bit", type=int, choices=(0, 1))
    chosen = parser.parse_args()
    run_one(chosen.contender, chosen.n_pairs, bool(chosen.four_bit), 0)
