"""Fixtures: the embedded model, loaded once; offline throughout."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("default", deadline=None)  # a slow machine is no fault
settings.register_profile("nightly", deadline=None, max_examples=5_300)
settings.load_profile("default")


@pytest.fixture(scope="session")
def toy():
    """The insecure embedded model in fp32. Tests must not change it."""
    from secalign_kit import models

    return models.load("toy", four_bit=False)


@pytest.fixture(scope="session")
def secured():
    """The embedded model with the shipped SecAlign adapter, in 4-bit."""
    from secalign_kit import models

    return models.load("toy", four_bit=True, adapter=models.ADAPTERS["secalign"])


@pytest.fixture
def tiny_config(tmp_path):
    from secalign_kit.config import RunConfig

    return RunConfig(
        model="toy", four_bit=True, n_pairs=24, batch_size=8, epochs=1, max_length=256,
        lora_r=4, lora_alpha=4, lora_dropout=0.0, learning_rate=1e-3, output=str(tmp_path / "run"),
    )


@pytest.fixture
def without_heldout(monkeypatch):
    """`without_heldout(n)`: no held-out samples may be asked for, and of validation n are there."""
    from secalign_kit import evaluation, training
    from secalign_kit.samples import shipped_samples

    def limit(n):
        def allowed(split):
            assert split != "heldout"
            return shipped_samples(split)[: n if split == "validation" else None]

        for module in (evaluation.items, training):
            monkeypatch.setattr(module, "shipped_samples", allowed)

    return limit


@pytest.fixture
def train_killed():
    """`train_killed(config, pairs, probe)`: a run that dies after its third step and goes on."""
    from secalign_kit import training

    class Killed(Exception):
        pass

    def kill(record):
        if record["step"] == 3:
            raise Killed

    def train(config, pairs, probe):
        with pytest.raises(Killed):
            training.train(config, pairs, probe, on_record=kill)
        return training.train(config, pairs, probe)

    return train
