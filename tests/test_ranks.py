"""A job on two ranks, as `accelerate launch` starts it, is the job on one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as functional
import yaml
from safetensors.torch import load_file

from secalign_kit import cli, preference, ranks, training
from secalign_kit.samples import DATA

ROOT = Path(__file__).resolve().parent.parent

JOBS = """
import os, sys
import torch
from torch.distributed.fsdp import fully_shard
from secalign_kit import cli, models, shared_prefix

samples, run, records = sys.argv[1:4]
assert cli.main(["train", *sys.argv[4:], "--output", run]) == 0
assert cli.main(["evaluate", run, "--no-four-bit", "--attacks", "naive", "--samples", samples,
                 "--records", records]) == 0

# the weights in shards, each rank with the same pairs: what is computed is the same
pairs = [([5, 6, 7, 8], [9, 10], [11, 12, 13]), ([15, 16, 17], [9, 10], [11])]
batch, found = shared_prefix.collate(pairs, 0), []
for sharded in (False, True):
    model = models.load("toy", four_bit=False, adapter=run).model
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name)
    if sharded:
        for layer in shared_prefix.decoder_of(model.get_base_model()).layers:
            fully_shard(layer)
        fully_shard(model)
    tokens = shared_prefix.token_logprobs(model, batch)
    tokens.sum().backward()
    gradient = next(p.grad for n, p in model.named_parameters() if "lora_B" in n)
    found.append((tokens, gradient.full_tensor() if sharded else gradient))
assert type(gradient).__name__ == "DTensor"
for whole, parts in zip(*found, strict=True):
    torch.testing.assert_close(whole, parts)
"""

KILLED = """
import os, signal, sys
from secalign_kit import cli, training

note = training.PairTrainer.note
def dies(self, scores):
    if os.environ["RANK"] == "1" and self.state.global_step == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    note(self, scores)

training.PairTrainer.note = dies
sys.exit(cli.main(["train", *sys.argv[1:]]))
"""

# 19 pairs in batches of 4, two batches a step: the last step has one batch, of three pairs
SETTINGS = [word for setting in ("four_bit=false", "n_pairs=19", "batch_size=4", "accumulation=2",
                                 "lora_r=4", "probe_every=2", "adversary_moves=1")
            for word in ("--set", setting)]


def launch(folder, code, *arguments):
    (folder / "job.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
         DATA / "accelerate" / "ddp.yaml", "--num_processes", "2", "--main_process_port", "0",
         folder / "job.py", *arguments],
        env=environment, text=True, capture_output=True, timeout=300)


def records(path):
    """But for their key, which holds a hash of the adapter, bit by bit."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "key"} for record in found]


def test_two_ranks_train_and_evaluate_as_one_does(tmp_path):
    rows = [{"instruction": "Count the words.", "input": "red, owl" + ", shelf" * n,
             "output": str(n + 2)} for n in range(3)]
    samples = tmp_path / "samples.json"
    samples.write_text(json.dumps(rows))
    done = launch(tmp_path, JOBS, samples, tmp_path / "two", tmp_path / "two.jsonl", *SETTINGS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Adapter: ") == 1  # the first rank speaks
    assert cli.main(["train", *SETTINGS, "--output", str(tmp_path / "one")]) == 0
    assert cli.main(["evaluate", str(tmp_path / "one"), "--no-four-bit", "--attacks", "naive",
                     "--samples", str(samples), "--records", str(tmp_path / "one.jsonl")]) == 0

    one, two = (records(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [r["step"] for r in one] == [r["step"] for r in two] == [0, 1, 2, 3]
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() & {"loss", "margin", "chosen_logprob", "rejected_logprob",
                                *training.ATTACKED}:
            assert a[name] == pytest.approx(b[name], abs=1e-5)
    assert one[1].keys() >= {*training.ATTACKED}
    assert one[3]["margin"] != pytest.approx(0, abs=1e-4)  # it has learned something
    adapters = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
                for name in ("one", "two")]
    assert max((adapters[0][name] - adapters[1][name]).abs().max() for name in adapters[0]) < 1e-4
    assert records(tmp_path / "one.jsonl") == records(tmp_path / "two.jsonl")


def test_a_rank_that_dies_ends_the_whole_without_an_adapter(tmp_path):
    run = tmp_path / "run"
    done = launch(tmp_path, KILLED, *SETTINGS, "--output", run)
    assert done.returncode != 0 and (run / "metrics.jsonl").exists()
    assert not [path for path in run.rglob("*") if path.name.startswith("adapter")]


def test_a_batch_that_ranks_cannot_share_is_refused(tiny_config, monkeypatch):
    monkeypatch.setattr(ranks, "count", lambda: 3)
    with pytest.raises(ValueError, match="batch_size is 8.*there are 3 ranks; choose a multiple"):
        training.train(tiny_config, [], [])
    monkeypatch.setattr(ranks, "count", lambda: 2)
    with pytest.raises(ValueError, match="TRL's own step, for one process"):
        training.train(tiny_config.replace(shared_prefix=False), [], [])


def test_commands_that_write_many_things_are_one_process(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["ledger", "--shipped"]) == 2
    assert "ledger is one process" in capsys.readouterr().err


def test_one_process_gets_the_values_as_they_are():
    assert ranks.each([3, 1, 2], lambda share: [2 * value for value in share], "abc") == [6, 2, 4]
    assert ranks.of_first(lambda: 5) == 5 and ranks.first() and ranks.device() in ("cpu", "cuda")


def test_a_rank_takes_every_nth_pair_and_never_none(toy, tiny_config):
    rows = training.prepare(tiny_config.replace(four_bit=False), toy,
                            training.training_pairs(tiny_config, n=3), progress=False)
    rows = list(rows)
    whole = training.collate(rows, 0, mismatched=True)
    shares = [training.collate(rows, 0, mismatched=True, rank=rank, of=4) for rank in range(4)]
    assert [len(share["input_ids"]) for share in shares] == [1, 1, 1, 1]
    assert {share["pairs"] for share in shares} == {3}
    references = [share["ref_chosen_logps"].item() for share in shares]
    assert references[:3] == whole["ref_chosen_logps"].tolist() and references[3] == references[0]
    before = whole["mismatched"]["target"][whole["mismatched"]["row"] == 1]
    assert shares[1]["mismatched"]["target"].tolist() == before.tolist()


@pytest.mark.parametrize("loss", ["dpo", "sft", "kto"])
@pytest.mark.parametrize("n", [2, 4])
def test_the_mean_of_the_ranks_gradients_is_the_gradient_of_the_whole_batch(n, loss):
    """AdamW forgives a gradient of another size, so its size is looked at here."""
    torch.manual_seed(0)
    leaf = torch.randn(6, 3).abs().mul(-1).requires_grad_()  # three pairs, by field
    whole = preference.batch_loss(preference.PairScores(*leaf), loss, 0.1, sft_weight=0.5)
    wanted, = torch.autograd.grad(whole, leaf)
    shares = [leaf[:, rank::n] if rank < 3 else leaf[:, :1] for rank in range(n)]
    width = shares[0].shape[1]
    sent = torch.stack([functional.pad(s.detach(), (0, width - s.shape[1])) for s in shares])
    found = []
    for rank, share in enumerate(shares):
        def gather(own, rank=rank):
            assert torch.equal(own[0], sent[rank])
            return sent

        accelerator = SimpleNamespace(num_processes=n, process_index=rank, gather=gather)
        scores = training.PairTrainer.of_all(SimpleNamespace(accelerator=accelerator),
                                             preference.PairScores(*share), 3)
        mine = preference.batch_loss(scores, loss, 0.1, sft_weight=0.5)
        assert mine.item() == pytest.approx(whole.item(), abs=1e-6)
        found += torch.autograd.grad(mine, leaf)
    torch.testing.assert_close(sum(found) / n, wanted)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_the_launchers_configurations_load_and_name_no_machine(name):
    from accelerate.commands.config.config_args import load_config_from_file

    path = DATA / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.num_machines == 1 and config.mixed_precision == "no"
    said = yaml.safe_load(path.read_text())
    assert not said.keys() & {"num_processes", "main_process_ip", "main_process_port", "gpu_ids"}
