"""Models with awkward features: each passes the check at loading, or is refused in a sentence."""

import json
from dataclasses import replace
from datetime import datetime

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from bakeoff.batch import Example
from bakeoff.engine.check import check_model
from bakeoff.errors import UserError, within
from bakeoff.model.build import build
from bakeoff.model.config import Model
from bakeoff.model.encode import (
    COMPARED,
    TODAY,
    decoder,
    encode,
    encode_with_completions,
    end_id,
    render,
    require_distinct,
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


CONTENT = "{{ m['content'] }}"
ROLES = ["system", "user", "assistant", "human", "gpt", "tool", "developer"]


def only(roles, form=CONTENT) -> str:
    """A template that writes the messages of these roles alone."""
    written = f"{{% if m['role'] in {roles} %}}|{{{{ m['role'] }}}}:{form}{{% endif %}}"
    return f"{{% for m in messages %}}{written}{{% endfor %}}|"


def chats(roles) -> list[Example]:
    """Examples whose chats have one message of each role."""
    return [
        Example(f"{at} + 1", None, messages=[{"role": role, "content": f"{role} {at} + 1"} for role in roles])
        for at in range(9)
    ]


@pytest.mark.parametrize("dropped", ROLES)
@pytest.mark.parametrize(
    "form", [CONTENT, "{{ m['content'] | trim | upper }}", "{{ m['content'].split('</think>')[-1] }}"]
)
def test_a_role_that_the_template_leaves_out_is_named(saved, dropped, form):
    written = [role for role in ROLES if role != dropped]
    policy = build(saved("llama", tokenizer(chat=only(written, form)), **LLAMA))
    require_distinct(policy, chats(written), [])
    remedy = {"system": "leave task.system empty", "user": "choose another model", "assistant": "choose another model"}
    sentence = f"leaves out messages of the role '{dropped}'; {remedy.get(dropped, 'rename that role')}"
    for roles in (ROLES, [dropped]) if dropped != "system" else (ROLES,):
        with pytest.raises(UserError, match=f"^model.chat is true, but the chat template {sentence}[^\n]*$"):
            require_distinct(policy, chats(written) + chats(roles), [])


def test_a_system_prompt_and_solved_examples_that_the_template_leaves_out_are_named(saved):
    policy = build(saved("llama", tokenizer(chat=only(["user"])), **LLAMA))
    require_distinct(policy, [Example("1", None)], [])
    with pytest.raises(UserError, match=r"of the role 'assistant'; choose another model, or set model.chat=false"):
        require_distinct(policy, [Example("1", None)], [Example("2", "3")])
    policy.system = "Think."
    with pytest.raises(UserError, match=r"of the role 'system'; leave model.system empty, or set model.chat=false"):
        require_distinct(policy, [Example("1", None)], [])


PROMPTS = [f"{at} + {at % 7}" for at in range(2000)]


@pytest.mark.parametrize("template", ["hello", "{{ '|' }}", only([]), only(["user"], "{{ m['content'][:2] }}"),
                                      only(["user"], "{{ m['content'] | length }}")])  # fmt: skip
def test_a_template_that_writes_too_little_of_a_prompt_is_refused(saved, template):
    policy = build(saved("llama", tokenizer(chat=template), **LLAMA))
    policy_without = replace(policy, chat=False)
    examples = [Example(text, None) for text in PROMPTS]
    require_distinct(policy_without, examples, [])
    with pytest.raises(UserError, match=r"^model\.chat is true, but the chat template [^\n]* model\.chat=false[^\n]*$"):
        require_distinct(policy, examples, [])


def test_the_sentence_shows_where_two_prompts_of_equal_tokens_differ(saved):
    template = only(["user"], "{{ m['content'][:50] }}{{ m['content'] | length }}")
    policy = build(saved("llama", tokenizer(chat=template), **LLAMA))
    with pytest.raises(UserError, match=r"of the prompts 'a{20}1' and 'a{20}2'; set model.chat=false"):
        require_distinct(policy, [Example("a" * 60 + end, None) for end in "12"], [])


def test_a_tokenizer_that_drops_what_differs_is_refused(saved):
    tok = tokenizer()
    tok.backend_tokenizer.normalizer = normalizers.Replace(Regex("[0-9]"), "0")
    with pytest.raises(UserError, match=r"^task: the tokenizer makes the same tokens of the prompts '1' and '2'; "):
        require_distinct(build(saved("llama", tok, **LLAMA)), [Example("1", None), Example("2", None)], [])


def test_equal_prompts_and_those_that_differ_in_case_or_white_space_are_accepted(saved):
    tok = tokenizer(chat=only(["user"], "{{ m['content'] | trim | lower }}"))
    policy = build(saved("llama", tok, **LLAMA))
    require_distinct(policy, [Example(text, None) for text in ("a b", "a b", " a b\n", "A b")], [])


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 5000])
def test_the_number_of_prompts_that_are_compared_is_bounded(saved, monkeypatch, size):
    policy = build(saved("llama", tokenizer(), **LLAMA))
    seen = []
    monkeypatch.setattr("bakeoff.model.encode.render", lambda policy, example, shots: seen.append(1) or example.prompt)
    require_distinct(policy, [Example(str(at), None) for at in range(size)], [])
    assert min(size, COMPARED) // 2 <= len(seen) <= COMPARED
