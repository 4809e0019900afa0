"""Folders of models: the weights of a run are those in the files, or the folder is refused in one sentence."""

import json
import os
import pickle
import re
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from bakeoff.errors import UserError
from bakeoff.model.build import build, skeleton
from bakeoff.model.config import Model
from bakeoff.model.saved import saved_network
from bakeoff.model.weights import weights_hash
from tests.conftest import compose, loop_of, update_of
from tests.model.test_check import GPT, LLAMA, OPT, tokenizer

KINDS = {
    "llama": LLAMA,
    "gpt2": GPT,
    "opt": OPT,
    "gemma3_text": LLAMA | {"head_dim": 8},
    "mixtral": LLAMA | {"num_local_experts": 2},
}
TOK = tokenizer()
WEIGHTS = "model.safetensors"
REFUSED = r"^model\.name is '[^\n]*', which cannot be loaded; it must be a Hugging Face name or a folder [^\n]*$"


@pytest.fixture(scope="module", params=KINDS)
def whole(request, tmp_path_factory):
    """A folder with a whole model of each kind."""
    return made(tmp_path_factory.mktemp("whole"), request.param)


@pytest.fixture
def llama(tmp_path):
    return made(tmp_path / "llama", "llama")


def made(folder, kind):
    ids = {f"{name}_token_id": getattr(TOK, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(kind, **{**ids, "vocab_size": len(TOK), **KINDS[kind]})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    TOK.save_pretrained(folder)
    return folder


def built(folder):
    return build(Model(name=str(folder))).network


def refusal(folder, load=build):
    """The sentence in which a folder is refused."""
    with pytest.raises(UserError) as caught:
        load(Model(name=str(folder)))
    assert re.match(REFUSED, str(caught.value)), caught.value
    return str(caught.value)


def changed(folder, new, weights):
    """A copy of the folder with these weights, a dictionary by name."""
    shutil.copytree(folder, new, dirs_exist_ok=True)
    save_file(weights, new / WEIGHTS, metadata={"format": "pt"})
    return new


def with_config(folder, file="config.json", **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def test_a_weight_that_is_missing_or_has_another_shape_is_named(whole, tmp_path):
    """Every weight of the last layer and around the layers in turn; a tied one is in the file once."""
    saved = load_file(whole / WEIGHTS)
    for name, weight in saved.items():
        if re.search(r"\.0\.", name):
            continue
        other = "moe" in name or "embed_out" in name  # transformers has another name for it, or refuses by itself
        with pytest.raises(Exception if other else ValueError, match=None if other else f"its files lack .*{name}"):
            saved_network(str(changed(whole, tmp_path, {k: v for k, v in saved.items() if k != name})), Model(), TOK)
        larger = torch.cat([weight, weight])
        sentence = re.escape(f"{name} is {list(larger.shape)}, and must be {list(weight.shape)}")
        with pytest.raises(Exception if other else ValueError, match=None if other else sentence):
            saved_network(str(changed(whole, tmp_path, saved | {name: larger})), Model(), TOK)


def test_a_whole_folder_has_the_weights_of_its_files_whatever_else_they_hold(whole, tmp_path):
    network = built(whole)
    saved = load_file(whole / WEIGHTS)
    state = network.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in saved.items() if name in state)
    more = {"score.weight": torch.ones(2, 2), "lm_head.weight": state["lm_head.weight"]}  # the second may be tied
    extended = changed(whole, tmp_path, {name: weight.clone() for name, weight in (more | saved).items()})
    assert weights_hash(built(extended)) == weights_hash(network)


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [(1, "its files have 2 layers in model.layers, but its config.json 1"), (3, "its files lack 9 tensors")],
)
def test_a_configuration_of_another_number_of_layers_is_refused(llama, layers, sentence):
    assert sentence in refusal(with_config(llama, num_hidden_layers=layers, layer_types=None))


@pytest.mark.parametrize(
    "change",
    [
        lambda w: {},
        lambda w: {f"transformer.{k}": v for k, v in w.items()},
        lambda w: {k.replace("layers", "h"): v for k, v in w.items()},
        lambda w: {k: v for k, v in w.items() if ".1." not in k},
    ],
)
def test_weights_by_other_names_are_missing_and_their_number_is_named(llama, tmp_path, change):
    saved = load_file(llama / WEIGHTS)
    weights = change(saved)
    sentence = refusal(changed(llama, tmp_path / "new", weights))
    assert f"its files lack {len(saved.keys() - weights.keys())} tensors (" in sentence


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_file_of_weights_that_is_cut_is_refused(llama, length):
    (llama / WEIGHTS).write_bytes((llama / WEIGHTS).read_bytes()[:length])
    refusal(llama)


def test_a_pickle_is_refused_and_never_executed(llama, tmp_path):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (llama / WEIGHTS).unlink()
    (llama / "pytorch_model.bin").write_bytes(pickle.dumps(Code(), protocol=2))
    refusal(llama)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", "null"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("load", [build, skeleton])
def test_a_file_of_another_form_is_refused_or_does_without(llama, file, text, load):
    """Some files may be missing, and then what is in them does not matter to transformers."""
    expected = weights_hash(built(llama))
    (llama / file).write_text(text)
    policy, sentence = None, ""
    try:
        policy = load(Model(name=str(llama)))
    except UserError as error:
        sentence = str(error)
    assert re.match(REFUSED, sentence) if policy is None else file != "config.json"
    assert policy is None or load is skeleton or weights_hash(policy.network) == expected


@pytest.mark.parametrize("load", [build, skeleton])
@pytest.mark.parametrize(
    "values",
    [
        {"dtype": "float99"},
        {"num_attention_heads": 3},
        {"hidden_size": "x"},
        {"hidden_size": -32},
        {"vocab_size": None},
        {"rope_scaling": {"type": "zz"}},
        {"rope_parameters": {"rope_type": "zz"}},
        {"hidden_act": "zz"},
        {"model_type": "zz"},
        {"num_hidden_layers": 2.5},
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(llama, values, load):
    refusal(with_config(llama, **values), load)


def test_lack_of_memory_is_no_fault_of_the_folder(llama, monkeypatch):
    full = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
    for error in (MemoryError(), torch.OutOfMemoryError(), full, KeyboardInterrupt()):

        def fails(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fails)
        with pytest.raises(type(error)):
            build(Model(name=str(llama)))


@pytest.mark.parametrize("ends", ["x", [[2]], ["x"], [None], {}, {"a": 1}, 2.0, True, -1, [2, -1]])
def test_an_end_that_is_no_token_is_refused(llama, ends):
    (llama / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(UserError, match=r"^model.name is '[^\n]*; it must be a [^\n]*$"):
        build(Model(name=str(llama)))


@pytest.mark.parametrize("ends", [None, [], 2, [2, 5]])
def test_ends_that_are_tokens_are_those_of_the_folder_and_of_its_tokenizer(llama, ends):
    (llama / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    policy = build(Model(name=str(llama)))
    own = {policy.tokenizer.eos_token_id}
    assert set(policy.eos_ids) == own | set(ends if isinstance(ends, list) else [ends] if ends else [])


def adapted(folder, base, seed=1, **options):
    """Saves an adapter of the base whose product is not zero; returns its folder and the merged network."""
    torch.manual_seed(seed)
    network = built(base)
    network.name_or_path = str(base)
    peft = get_peft_model(network, LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False, **options))
    peft.save_pretrained(folder)
    TOK.save_pretrained(folder)
    return folder, peft.merge_and_unload()


@pytest.mark.parametrize(
    "options",
    [{"target_modules": ["q_proj"]}, {"target_modules": "all-linear"}, {"target_modules": ["v_proj"], "use_dora": True},
     {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}],
)  # fmt: skip
def test_an_adapter_is_merged_and_all_of_its_weights_are_trained(llama, tmp_path, options):
    first, merged = adapted(tmp_path / "first", llama, **options)
    assert weights_hash(built(first)) == weights_hash(merged)
    second, merged_twice = adapted(tmp_path / "second", first, seed=2, **options)
    network = built(second)
    assert weights_hash(network) == weights_hash(merged_twice) != weights_hash(merged)
    assert all(weight.requires_grad for weight in network.parameters())
    skeleton(Model(name=str(second)))


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.replace("layers.1", "layers.7"),
        lambda name: name.replace("q_proj", "zz"),
        lambda name: "" if "layers.1" in name else name,
        lambda name: "",
    ],
)
def test_an_adapter_that_does_not_fit_its_base_is_refused(llama, tmp_path, change):
    folder, _ = adapted(tmp_path / "adapter", llama, target_modules=["q_proj"])
    path = folder / "adapter_model.safetensors"
    save_file({change(name): weight for name, weight in load_file(path).items() if change(name)}, path)
    assert "the adapter lacks " in refusal(folder)


def test_an_adapter_with_more_layers_than_its_base_is_refused(llama, tmp_path):
    folder, _ = adapted(tmp_path / "adapter", llama, target_modules=["q_proj"])
    path = folder / "adapter_model.safetensors"
    saved = load_file(path)
    save_file(saved | {name.replace("layers.1", "layers.7"): weight.clone() for name, weight in saved.items()}, path)
    assert "the adapter has 2 tensors (" in refusal(folder)


@pytest.mark.parametrize("base", [None, "", "/no/such/folder", "itself"])
def test_an_adapter_without_a_base_is_refused(llama, tmp_path, base):
    folder, _ = adapted(tmp_path / "adapter", llama, target_modules=["q_proj"])
    named = str(folder) if base == "itself" else base
    refusal(with_config(folder, "adapter_config.json", base_model_name_or_path=named))
    refusal(folder, skeleton)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_run_trains_the_merged_weights_of_an_adapter(llama, tmp_path, algorithm):
    folder, merged = adapted(tmp_path / "adapter", llama, target_modules=["q_proj"])
    small = ("task.heldout=4", "task.digits=2", "task.max_new_tokens=4", "batch.prompts=2", "batch.group_size=2")
    model = ("model=hf", f"model.name={folder}", "model.chat=false", "sft.steps=1", "tuned=none")
    loop = loop_of(compose(*model, *small, f"algorithm={algorithm}"))
    before = merged.state_dict()
    moved = {name for name, weight in loop.learner.actor.trained().items() if not torch.equal(weight, before[name])}
    assert moved == load_file(llama / WEIGHTS).keys()
    update_of(loop)


@pytest.mark.parametrize("kind", ["bakeoff", "bakeoff.evaluate", "bakeoff.predict_command"])
def test_a_command_that_cannot_load_its_model_says_so_in_one_sentence(llama, command, kind):
    """It has no run to resume, and no traceback."""
    (llama / "config.json").write_text("[]")
    small = ("task=sort", "task.heldout=4", "sft.steps=0", "model=hf", "model.chat=false")
    named = (str(llama),) if kind == "bakeoff.evaluate" else (f"model.name={llama}",)
    ended = command(*named, *small, module="bakeoff.__main__" if kind == "bakeoff" else kind)
    assert ended.returncode == 2
    (sentence,) = [line for line in ended.stderr.splitlines() if line.startswith("bakeoff")]
    assert "which cannot be loaded" in sentence
    assert "Traceback" not in ended.stderr
    assert "To resume the run" not in ended.stderr
