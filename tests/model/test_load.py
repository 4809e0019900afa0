"""Models are reproducible and saved for transformers; prompts are encoded for them or refused."""

import hashlib

import pytest
import torch

from bakeoff.batch import Example
from bakeoff.errors import UserError
from bakeoff.model.build import build
from bakeoff.model.encode import encode, render
from bakeoff.model.fetch import verify
from bakeoff.model.weights import save, weights_hash
from tests.conftest import compose


def test_tiny_has_101_888_parameters_and_19_tokens(tiny):
    assert sum(p.numel() for p in tiny.network.parameters()) == 101_888
    assert len(tiny.tokenizer) == 19


def test_the_same_seed_builds_the_same_weights():
    model = compose().model
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert weights_hash(build(model, 1).network) == weights_hash(build(model, 1).network)
    assert weights_hash(build(model, 1).network) != weights_hash(build(model, 2).network)
    assert torch.equal(torch.get_rng_state(), state), "building must not disturb the global generator"


def test_saved_and_loaded_weights_are_the_same(tiny, tmp_path):
    save(tiny, tmp_path)
    model = compose("model=hf", f"model.name={tmp_path}", "model.precision=float32", "model.chat=false").model
    assert weights_hash(build(model).network) == weights_hash(tiny.network)


def test_text_round_trips_through_the_tokenizer(tiny):
    text = "12+3=15, 4-2*1"
    assert tiny.tokenizer.decode(tiny.tokenizer(text)["input_ids"]) == text


def test_prompts_are_left_padded(tiny):
    prompts = encode(tiny, [Example("1=", ""), Example("123=", "")], [])
    assert prompts.attention.tolist() == [[False, False, True, True], [True] * 4]


def test_shots_precede_the_question(tiny):
    assert render(tiny, Example("1+1=", "2"), [Example("2+2=", "4")]) == "2+2=4\n1+1="


def test_a_character_without_a_token_is_refused_by_name(tiny):
    with pytest.raises(UserError, match="has the character 'W'"):
        encode(tiny, [Example("What is 1+1?", "2")], [])


def test_an_architecture_that_cannot_be_built_is_refused():
    with pytest.raises(UserError, match=r"model\.architecture is"):
        compose("model.architecture.num_attention_heads=7")


def test_a_wrong_checksum_is_refused(tmp_path):
    path = tmp_path / "a.whl"
    path.write_bytes(b"weights")
    verify(path, hashlib.sha256(b"weights").hexdigest())
    with pytest.raises(UserError, match="SHA-256"):
        verify(path, "0" * 64)
