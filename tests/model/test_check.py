"""Models with awkward features: each passes the check at loading, or is refused in a sentence."""

import json
from datetime import datetime

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from bakeoff.batch import Example
from bakeoff.engine.check import check_model
from bakeoff.errors import UserError, within
from bakeoff.model.build import build
from bakeoff.model.config import Model
from bakeoff.model.encode import (
    TODAY,
    decoder,
    encode,
    encode_with_completions,
    end_id,
    render,
    require_room,
    undated,
)

LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
TURNS = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|turn|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|start|>model\n{% endif %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def tokenizer(bos=True, eos=True, pad=None, chat="", before="", after="", extra=()) -> PreTrainedTokenizerFast:
    """A token a byte, then special tokens; `before` and `after` stand around every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    named = {"bos_token": "<|bos|>"} if bos else {}
    named |= ({"eos_token": "<|eos|>"} if eos else {}) | ({"pad_token": pad} if pad else {})
    special = dict.fromkeys([*named.values(), "<|start|>", "<|turn|>", *extra])
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    if before or after:
        ids = [(text, core.token_to_id(text)) for text in (before, after) if text]
        core.post_processor = processors.TemplateProcessing(single=f"{before} $A {after}".strip(), special_tokens=ids)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, **named)
    fast.chat_template = chat or None
    return fast


@pytest.fixture
def saved(tmp_path):
    """Saves a model with random weights, large enough to show what differs; returns its configuration of ours."""

    def save(kind: str, tok: PreTrainedTokenizerFast, ends: list[int] | None = None, rows: int = 0, **values) -> Model:
        torch.manual_seed(0)
        ids = {f"{name}_token_id": getattr(tok, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        config = AutoConfig.for_model(kind, **{**ids, "vocab_size": rows or len(tok), **values})
        network = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(3 if parameter.dim() > 1 else 1)
        network.save_pretrained(tmp_path)
        tok.save_pretrained(tmp_path)
        if ends:
            (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        return Model(name=str(tmp_path), chat=bool(tok.chat_template))

    return save


def loaded(model: Model):
    policy = build(model)
    policy.network.eval()
    check_model(policy, model.name)
    return policy


GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
OPT = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32,
       "max_position_embeddings": 64}  # fmt: skip
PASS = {
    "llama": LLAMA,
    "opt": OPT,  # calls dropout as a function
    "gpt2": GPT,  # dropout modules
    "gptj": GPT | {"rotary_dim": 4},  # eager attention alone
    "mistral": LLAMA | {"sliding_window": 4},  # shorter than the probe
    "gemma3_text": LLAMA | {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma2": LLAMA | {"head_dim": 8, "sliding_window": 8, "final_logit_softcapping": 3.0},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},  # positions by the mask
}  # fmt: skip
HYBRID = {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}
REFUSED = {
    "lfm2": LLAMA | HYBRID,
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "openai-gpt": GPT,
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", PASS)
def test_a_model_whose_passes_agree_is_accepted(saved, kind, recompute):
    model = saved(kind, tokenizer(), **PASS[kind])
    model.gradient_checkpointing = recompute
    loaded(model)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_keeps_its_state_elsewhere_is_refused(saved, kind):
    with pytest.raises(UserError, match=r"^model.name is .* whose log-probs are not those of a causal LM .*; "):
        loaded(saved(kind, tokenizer(), **REFUSED[kind]))


def test_dropout_that_is_left_in_training_mode_is_refused(saved):
    model = saved("llama", tokenizer(), **LLAMA)
    model.gradient_checkpointing = True
    policy = build(model)
    policy.network.eval()
    layer = policy.network.model.layers[0]
    layer.mlp.register_forward_hook(
        lambda module, inputs, output: torch.nn.functional.dropout(output, 0.5, training=layer.training)
    )
    with pytest.raises(UserError, match="a pass in training mode differs"):
        check_model(policy, model.name)


@pytest.mark.parametrize(
    ("tok", "rows", "sentence"),
    [
        (tokenizer(bos=False, eos=False), 0, "has no token that ends a text"),
        (tokenizer(pad="<pad>"), 259, "has ids up to 260, but the model embeds only 259"),
    ],
)
def test_a_tokenizer_that_does_not_fit_the_model_is_refused(saved, tok, rows, sentence):
    with pytest.raises(UserError, match=sentence):
        build(saved("llama", tok, rows=rows, **LLAMA))


@pytest.mark.parametrize("pad", [None, "<pad>"])
@pytest.mark.parametrize("before", ["", "<|bos|>"])
def test_no_prompt_ends_with_a_token_that_the_tokenizer_appends(saved, pad, before):
    policy = loaded(saved("llama", tokenizer(pad=pad, before=before, after="<|eos|>"), **LLAMA))
    ids = encode(policy, [Example("1+1=", "2")], []).ids[0].tolist()
    assert policy.tokenizer.convert_ids_to_tokens(ids) == [*([before] if before else []), *"1+1="]


def test_a_given_completion_ends_as_the_template_ends_a_turn(saved):
    tok = tokenizer(chat=TURNS + PROMPT)
    turn, eos = tok.convert_tokens_to_ids(["<|turn|>", "<|eos|>"])
    policy = loaded(saved("llama", tok, ends=[eos, turn], **LLAMA))
    assert end_id(policy) == turn
    assert encode_with_completions(policy, [Example("q", "")], ["15"], []).completion_ids[0, -1] == turn
    policy.chat = False
    assert end_id(policy) == eos


def test_special_tokens_of_a_text_stay_in_it_and_those_around_it_go(saved):
    policy = loaded(saved("llama", tokenizer(extra=["<answer>", "</answer>"], pad="<pad>"), **LLAMA))
    ids = policy.tokenizer("<|bos|><answer>42</answer><|eos|><pad>", add_special_tokens=False)["input_ids"]
    assert decoder(policy)(ids) == "<answer>42</answer>"


def test_a_template_without_a_system_role_is_named(saved):
    model = saved("llama", tokenizer(chat=NO_SYSTEM + TURNS + PROMPT), **LLAMA)
    model.system = "Hi"
    with pytest.raises(UserError, match=r"model.system is 'Hi'.*System role not supported.*leave model.system empty"):
        render(build(model), Example("q", ""), [])


def test_a_template_that_does_not_end_is_stopped(saved):
    policy = build(saved("llama", tokenizer(chat=ENDLESS), **LLAMA))
    with pytest.raises(UserError, match="the template"), within(0.2, "the template does not end."):
        render(policy, Example("q", ""), [])


@pytest.mark.parametrize("rope", ["default", "dynamic", "longrope"])
def test_a_prompt_and_a_completion_fit_the_positions(saved, rope):
    scaling = {"rope_type": rope, "factor": 2.0, "rope_theta": 10000.0}
    if rope == "longrope":
        scaling |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 20}
    bound = 20 if rope == "longrope" else 64
    policy = build(saved("llama", tokenizer(), **LLAMA | {"rope_parameters": scaling}))
    prompts = encode(policy, [Example("1+1=", "2")], [])
    require_room(policy, prompts, bound - 4)
    with pytest.raises(UserError, match=rf"task.max_new_tokens is {bound - 3}, .* the model has {bound} positions"):
        require_room(policy, prompts, bound - 3)


def test_characters_without_a_token_are_refused_in_prompts_and_completions(tiny):
    for texts in (("two=", "2"), ("2=", "two")):
        with pytest.raises(UserError, match=r"has the character '[two]', for which the model has no token"):
            encode_with_completions(tiny, [Example(texts[0], "")], [texts[1]], [])


@pytest.mark.parametrize("form", ["%d %b %Y", "%Y-%m-%d", "%B %-d, %Y", "%A", "no date"])
@pytest.mark.parametrize("before", ["", "\n", "  \n\n", "{% set a = 1 %}\n"])
def test_a_template_writes_the_same_day_in_every_run(form, before):
    """And nothing else changes: it is the template's own text, with that day for today's."""
    tok = tokenizer(chat=before + "Today: {{ strftime_now('" + form + "') }}\n{{ messages[0]['content'] }}")
    asked = [{"role": "user", "content": "a"}]
    dated = tok.apply_chat_template(asked, tokenize=False)
    fixed = tok.apply_chat_template(asked, tokenize=False, chat_template=undated(tok.chat_template))
    assert fixed == dated.replace(datetime.now().strftime(form), TODAY.strftime(form))
    assert undated("{{ messages }}") == "{{ messages }}"
