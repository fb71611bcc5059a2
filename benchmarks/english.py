"""DPO on a real model: the kit against TRL's defaults, on pairs as `secalign-kit real` makes them.

Each round takes new pairs, as texts, through tokenization, reference log-probs and one epoch. "TRL
defaults" sets nothing but the batch and the rate. Both train the same LoRA on the same weights, the
shipped undefended model in its own dtype, whose own answers the pairs hold. TRL ends every answer,
also those that were cut off. `ENGLISH_PAIRS=16` makes small rounds, to see whether it works.
"""

import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from secalign_kit import logprobs, models, prompts, real, training
from secalign_kit.config import RunConfig
from secalign_kit.models import Bundle
from secalign_kit.pairs import CUT

from .dpo import token_limit
from .measuring import Result, compare, take_turns, timed

MODEL = f"{real.MODEL}+smollm2_undefended"
FOLDER = Path("runs/bench/english")  # of the pairs, whose own answers take a while
PAIRS = int(os.environ.get("ENGLISH_PAIRS", 64))  # of a round


def config_of(folder: Path) -> RunConfig:
    return real.settings(folder)["smollm2_secalign"].replace(
        model=MODEL, n_pairs=PAIRS, save_steps=10**6, output=str(folder))


def loaded() -> Bundle:
    return models.load(MODEL, four_bit=False)


def made(rounds: int) -> Dataset:
    """The pairs of all rounds and of the warming up."""
    config = config_of(FOLDER / "run").replace(n_pairs=(rounds + 1) * PAIRS)
    return training.training_pairs(config, bundle=loaded())


def some(dataset: Dataset, number: int) -> Dataset:
    """A round's own pairs, so that no cache answers; round -1 warms up."""
    start = (number + 1) * PAIRS
    return dataset.select(range(start, start + PAIRS))


def ours(dataset: Dataset, folder: Path) -> tuple[float, float]:
    """Seconds in all, and the share of the machine's products that the steps reach."""
    config, bundle, began = config_of(folder), loaded(), time.perf_counter()
    rows = training.prepare(config, bundle, dataset, progress=False)
    trainer = training.build_trainer(config, bundle, rows, folder)
    steps, _ = timed(trainer.train)
    seconds = time.perf_counter() - began
    return seconds, real.share_of_products(bundle, rows, steps)


def theirs(dataset: Dataset, folder: Path) -> tuple[float, object]:
    """The same with TRL's DPOTrainer as its documentation shows it."""
    config, bundle = config_of(folder), loaded()
    texts = Dataset.from_list([
        {"prompt": prompts.render(bundle.format, *prompts.messages_to_parts(pair["prompt"])),
         "chosen": pair["chosen"][0]["content"], "rejected": pair["rejected"][0]["content"]}
        for pair in dataset])
    arguments = DPOConfig(
        output_dir=str(folder), per_device_train_batch_size=config.batch_size, num_train_epochs=1,
        learning_rate=config.learning_rate, max_length=config.max_length, report_to="none",
        disable_tqdm=True, save_strategy="no", use_cpu=True, dataloader_pin_memory=False)
    lora = models.lora(config.lora_r, config.lora_alpha, config.lora_dropout, config.lora_targets)

    def job():
        trainer = DPOTrainer(bundle.model, args=arguments, train_dataset=texts, peft_config=lora,
                             processing_class=bundle.tokenizer)
        trainer.train()
        return trainer.train_dataset

    return timed(job)


def same_tokens(dataset: Dataset, count: int = 8) -> tuple[str, str]:
    """Stops unless both read the same tokens; and the limit by tokens.

    Of pairs whose answers are whole and whose data neither begin nor end in whitespace, which TRL
    reads as part of the delimiter beside it: one token of 3 in 100 pairs.
    """
    bundle = loaded()
    mine = logprobs.encode_pairs(bundle, dataset, 512)
    whole = [k for k, pair in enumerate(dataset)
             if CUT not in (pair["chosen"][0]["role"], pair["rejected"][0]["role"])
             and all(part == part.strip() for part in prompts.messages_to_parts(pair["prompt"]))]
    whole = whole[:count]
    with tempfile.TemporaryDirectory() as folder:
        other = theirs(dataset.select(whole), Path(folder))[1]
    for row, k in zip(other, whole, strict=True):
        for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
            assert list(row[column]) == list(mine[k][column]), f"{column} differ"
    return f"same tokens in {len(whole)} pairs", token_limit(mine)


def english(rounds: int) -> list[Result]:
    """Raises ValueError if the model has not been fetched."""
    dataset, shares = made(rounds), []
    parity, limit = same_tokens(some(dataset, 0))

    def turn(contender, number: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            seconds, found = contender(some(dataset, number), Path(folder))
        shares.extend([found] if contender is ours else [])
        return seconds

    seconds = take_turns({"ours": partial(turn, ours), "TRL defaults": partial(turn, theirs)},
                         rounds, "DPO training, SmolLM2-135M")
    parity += (f"; our steps at {statistics.median(shares):.0%} of the machine's own rate of "
               "matrix products")
    return [compare(seconds, "TRL defaults", f"DPO training, {real.MODEL}, the kit's English",
                    PAIRS, "pairs/s", parity, limit, goal=2.5)]
