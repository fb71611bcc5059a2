"""An adapter of the right base is read as it was trained; any other is refused with the reason."""

import json

import pytest
import tokenizer_kinds as kinds
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from secalign_kit import adapters, evaluation, models, prompts

TARGETS = ["q_proj", "v_proj"]


@pytest.fixture
def base(tmp_path):
    return kinds.folder_of(tmp_path / "base", kinds.llama3(kinds.HEADERS))


def adapter_of(base, path, tokenizer=None, config=None, **options):
    """A random adapter of the model in the folder `base`, saved as peft saves it."""
    config = config or LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS, r=4,
                                  **options)
    torch.manual_seed(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.3 * torch.randn_like(weight)
    model.save_pretrained(path)
    if tokenizer:
        tokenizer.save_pretrained(path)
    return str(path)


def changed(path, **settings):
    """The folder with other settings in its configuration."""
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return str(path)


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits


KINDS = {
    "lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True},
    "saved": {"modules_to_save": ["lm_head"]}, "one layer": {"layers_to_transform": [1]},
    "ranks": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_adapter_the_model_is_pefts_and_without_it_the_base(base, tmp_path, kind):
    path = adapter_of(base, tmp_path / "adapter", **KINDS[kind])
    bundle = models.load(base, four_bit=False, adapter=path)
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    off = logits(plain)
    on = logits(PeftModel.from_pretrained(plain, path).eval())
    assert not torch.allclose(on, off, atol=1e-3)
    assert torch.equal(logits(bundle.model), on)
    with models.insecure(bundle):
        assert torch.equal(logits(bundle.model), off)
    with models.merged(bundle):
        assert torch.allclose(logits(bundle.model), on, atol=1e-5)
    assert torch.equal(logits(bundle.model), on)


@pytest.mark.parametrize(("kind", "what"), [("dora", "magnitudes"), ("saved", "modules_to_save")])
def test_the_dial_refuses_what_it_would_not_scale(base, tmp_path, kind, what):
    bundle = models.load(base, four_bit=False,
                         adapter=adapter_of(base, tmp_path / "adapter", **KINDS[kind]))
    with pytest.raises(ValueError, match=what), models.strength(bundle, 0.0):
        pass


@pytest.mark.parametrize(("config", "what"), [
    (IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]),
     "factors of the kind IA3"),
    (LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS, bias="lora_only"), "bias="),
    (LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS, trainable_token_indices=[5]),
     "trainable_token_indices="),
])
def test_the_dial_refuses_adapters_that_were_put_on_by_hand(base, config, what):
    """At strength 0 such a model would not be the base, though LoRA's part of it is off."""
    bundle = models.load(base, four_bit=False)
    bundle.model = get_peft_model(bundle.model, config)
    with pytest.raises(ValueError, match=what), models.strength(bundle, 0.0):
        pass


@pytest.mark.parametrize("kind", ["lora", "rslora", "ranks"])
def test_strength_zero_is_the_base(base, tmp_path, kind):
    bundle = models.load(base, four_bit=False,
                         adapter=adapter_of(base, tmp_path / "adapter", **KINDS[kind]))
    with models.insecure(bundle):
        off = logits(bundle.model)
    with models.strength(bundle, 0.0):
        assert torch.allclose(logits(bundle.model), off)


@pytest.mark.parametrize("settings", [
    {"bias": "lora_only"}, {"init_lora_weights": "pissa"}, {"layer_replication": [[0, 2], [1, 2]]},
    {"lora_bias": True}, {"alora_invocation_tokens": [5]},
])
def test_an_adapter_that_changes_its_base_is_refused(base, tmp_path, settings):
    path = tmp_path / "adapter"
    adapter_of(base, path)
    with pytest.raises(ValueError, match=f"has {next(iter(settings))}="):
        adapters.read(adapters.find(changed(path, **settings)))


def test_another_kind_of_adapter_is_refused(base, tmp_path):
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"],
                       feedforward_modules=["down_proj"])
    path = adapter_of(base, tmp_path / "adapter", config=config)
    with pytest.raises(ValueError, match="IA3; the kit knows LoRA"):
        models.load(base, four_bit=False, adapter=path)


def test_an_embedding_that_comes_with_the_adapter_is_refused(base, tmp_path):
    path = tmp_path / "adapter"
    adapter_of(base, path)
    weights = load_file(path / adapters.WEIGHTS)
    weights["base_model.model.model.embed_tokens.weight"] = torch.zeros(3, 16)
    save_file(weights, path / adapters.WEIGHTS)
    with pytest.raises(ValueError, match="in place of the model's"):
        models.load(base, four_bit=False, adapter=path)


def test_the_adapters_own_template_is_used(base, tmp_path):
    """As Meta SecAlign has it: the data in turns of a role that the base model does not know."""
    own = kinds.llama3(kinds.INPUT_ROLE)
    bundle = models.load(base, four_bit=False,
                         adapter=adapter_of(base, tmp_path / "adapter", own))
    assert bundle.format.name.startswith("chat-input") and "untrusted" in bundle.format.data
    prompt = prompts.encode(bundle.tokenizer, bundle.format, "Sum up.", "red")
    messages = [{"role": "user", "content": "Sum up."}, {"role": "input", "content": "red"}]
    assert list(prompt.ids) == own.apply_chat_template(messages, add_generation_prompt=True,
                                                       return_dict=False)
    assert evaluation.generate(bundle, [("Sum up.", "red")], max_new_tokens=2)
    chosen = models.load(base, four_bit=False, adapter=tmp_path / "adapter", format="chat-system")
    assert chosen.format.name.startswith("chat-system")


def test_a_template_of_any_role_needs_the_layout_said(base, tmp_path):
    own = kinds.llama3(kinds.HEADERS.replace("{{ bos_token }}", "{{ bos_token + 'Note. ' }}"))
    path = adapter_of(base, tmp_path / "adapter", own)
    with pytest.raises(ValueError, match="'chat-input'.*'chat-system'"):
        models.load(base, four_bit=False, adapter=path)
    for layout in ("chat-input", "chat-system"):
        bundle = models.load(base, four_bit=False, adapter=path, format=layout)
        assert bundle.format.name.startswith(layout) and "Note. " in bundle.format.instruction


def test_a_template_of_its_own_is_not_put_over_a_loaded_bundle(base, tmp_path):
    own = adapter_of(base, tmp_path / "own", kinds.llama3(kinds.INPUT_ROLE))
    same = adapter_of(base, tmp_path / "same", kinds.llama3(kinds.HEADERS))
    bundle = models.load(base, four_bit=False)
    with pytest.raises(ValueError, match="tokenizer of its own; load both"):
        models.with_adapter(bundle, own)
    assert not isinstance(bundle.model, PeftModel)
    assert models.with_adapter(bundle, same).adapter == same


def test_a_role_token_in_place_of_a_reserved_one_is_no_other_vocabulary(tmp_path):
    reserved, named = (kinds.byte_level([*kinds.LLAMA3, token], bos_token=kinds.LLAMA3[0],
                                        eos_token="<|eot_id|>", chat_template=kinds.HEADERS)
                       for token in ("<|reserved_0|>", "<|untrusted|>"))
    base = kinds.folder_of(tmp_path / "base", reserved)
    bundle = models.load(base, four_bit=False,
                         adapter=adapter_of(base, tmp_path / "adapter", named))
    assert "<|untrusted|>" in bundle.tokenizer.get_vocab()


def test_a_token_without_a_row_in_the_base_is_refused(base, tmp_path):
    template = kinds.INPUT_ROLE.replace("'untrusted'", "'<|untrusted|>'")
    own = kinds.byte_level([*kinds.LLAMA3, "<|untrusted|>"], bos_token=kinds.LLAMA3[0],
                           eos_token="<|eot_id|>", chat_template=template)
    path = adapter_of(base, tmp_path / "adapter", own)
    with pytest.raises(ValueError, match="untrusted.*an embedding of"):
        models.load(base, four_bit=False, adapter=path)


def test_another_vocabulary_is_refused(base, tmp_path):
    path = adapter_of(base, tmp_path / "adapter", kinds.sentence_piece(chat_template=kinds.LLAMA2))
    with pytest.raises(ValueError, match="another vocabulary"):
        models.load(base, four_bit=False, adapter=path)


@pytest.mark.parametrize(("sizes", "reason"), [
    ({"hidden_size": 32, "intermediate_size": 32}, "has the shape"),
    ({"num_hidden_layers": 3}, "this one has no model.layers.2"),
    ({"num_hidden_layers": 1}, "model.layers.1.self_attn.q_proj is in the model only"),
])
def test_an_adapter_of_a_model_of_other_shapes_is_refused(base, tmp_path, sizes, reason):
    other = kinds.folder_of(tmp_path / "other", kinds.llama3(), **sizes)
    path = adapter_of(other, tmp_path / "adapter")
    bundle = models.load(base, four_bit=False)
    before = logits(bundle.model)
    with pytest.raises(ValueError, match=reason):
        models.with_adapter(bundle, path)
    assert torch.equal(logits(bundle.model), before) and bundle.adapter is None


@pytest.mark.parametrize(("wanted", "given", "refused"), [
    ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Meta-Llama-3-8B-Instruct", True),
    ("unsloth/llama-3.1-8b-instruct-bnb-4bit", "meta-llama/Llama-3.1-8B-Instruct", False),
    ("/somewhere/llama", "meta-llama/Llama-3.1-8B-Instruct", False),
    (None, "meta-llama/Llama-3.1-8B-Instruct", False),
])
def test_names_tell_bases_apart_where_both_are_of_the_hub(base, tmp_path, wanted, given, refused):
    path = tmp_path / "adapter"
    adapter_of(base, path)
    folder = adapters.find(changed(path, base_model_name_or_path=wanted))
    model = AutoModelForCausalLM.from_pretrained(base)
    model.config._name_or_path = given
    try:
        adapters.refuse_other_base(folder, adapters.read(folder), model)
    except ValueError as error:
        assert refused and "load that one" in str(error)
    else:
        assert not refused


def test_an_adapter_that_is_nowhere_is_refused():
    with pytest.raises(ValueError, match="no folder, and not to be had"):
        adapters.find("someone/no-such-adapter")


def test_an_adapter_that_changes_nothing_is_said(base, tmp_path, recwarn):
    path = tmp_path / "adapter"
    models.load(base, four_bit=False, adapter=adapter_of(base, path))
    assert not [w for w in recwarn if "changes nothing" in str(w.message)]
    weights = load_file(path / adapters.WEIGHTS)
    save_file({name: 0 * tensor if ".lora_B" in name else tensor
               for name, tensor in weights.items()}, path / adapters.WEIGHTS)
    with pytest.warns(UserWarning, match="changes nothing: all its products are 0"):
        bundle = models.load(base, four_bit=False, adapter=path)
    with models.insecure(bundle):
        off = logits(bundle.model)
    assert torch.equal(logits(bundle.model), off)
