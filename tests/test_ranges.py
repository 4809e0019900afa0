"""Every number of a configuration has a range; what is typed is refused in one sentence, or makes a sound run."""

from __future__ import annotations

import functools
import json
import math
import string
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from bakeoff import validation
from bakeoff.algorithm import AXES
from bakeoff.algorithm.divergence import Diverged
from bakeoff.config import Config
from bakeoff.configuration import configuration_table
from bakeoff.engine import ENGINES
from bakeoff.errors import UserError, refused
from bakeoff.identity import config_id, flatten, plain
from bakeoff.paths import CONF, ROOT
from bakeoff.ranges import Range
from bakeoff.task import TASKS
from tests.conftest import loop_of, update_of
from tests.test_every_method import FEW_WITH_EVERY_OPTION, METHODS

pytestmark = pytest.mark.xdist_group("ranges")  # one worker, so that each configuration is composed once
TINY = [
    *("tuned=none", "sft.steps=0", "batch.prompts=4", "batch.group_size=2", "task.heldout=4", "task.max_new_tokens=4"),
    *("measure.kl_sequences=4", "preferences.pairs=8", "preferences.heldout=4", "preferences.batch=4"),
    *("preferences.steps=1", "preferences.renewal_steps=1", "preferences.renewal_pairs=4"),
]
CODE = """
def judge(text, answer, question):
    return float(text == answer)

def long(completions, **_):
    return [len(text) for text in completions]

def share(completions, **_):
    return {"share": 1.0}
"""
READABLE = f"model.characters='{string.ascii_letters}{string.digits} ,.?:+-*=/()'"
FOLDER = Path(tempfile.mkdtemp())
DATA = [
    *("task=dataset", f"task.path={FOLDER}/data.jsonl", "task.prompt='{{ question }}='", "task.answer=a", READABLE),
    *("task.stop=[';']", "task.system='Add:'"),
]
FUZZ = settings.get_current_profile_name() == "fuzz"  # make fuzz
BASES = [
    *([f"algorithm={method}", "task.digits=2"] for method in (METHODS if FUZZ else FEW_WITH_EVERY_OPTION)),
    *(["algorithm=ppo", "task.digits=2", f"algorithm/critic={critic}"] for critic in ("shared", "adapter")),
    ["algorithm=grpo", "task=reasoning_gym", READABLE],
    ["algorithm=rloo", "task=largest", "task.shots=0", READABLE],
    ["algorithm=grpo_iterative", "reward=learned", "task.digits=2"],
    [
        "algorithm=grpo",
        "task.digits=2",
        "engine=rounded",
        "algorithm/correction=truncate",
        "lag=1",
        "lr_factors=[1, 2]",
    ],
    ["algorithm=ppo", "task=sort_turns", "regime=noise", "budget.unit=work", "reuse=2", "task.max_new_tokens=9"],
    ["algorithm=rloo", *DATA, "task.verify=number", "task.extract=last_number", "task.heldout_share=0.3"],
    ["algorithm=grpo", *DATA, "task.verify=choice", "task.shots=1", "evaluation.final=6", "task.max_prompt_tokens=90"],
    [
        *("algorithm=grpo", *DATA, "task.verify=function", f"task.function={FOLDER}/mine.py:judge"),
        *("task.extract=after", "task.after='='", f"measure.functions=[{FOLDER}/mine.py:share]"),
        f"reward.functions={{verifier: 1, {FOLDER}/mine.py:long: 0.5}}",
    ],
]


def schemas(schema: Any) -> Iterator[type]:
    """A schema, those of its fields, and the options of its axes."""
    yield schema
    for name, hint in get_type_hints(schema).items():
        if is_dataclass(hint):
            yield from schemas(hint)
        for option in AXES.get(name, {}).values():
            yield from schemas(type(option))


SCHEMAS = {schema for root in (Config, *TASKS.values(), *ENGINES.values()) for schema in schemas(root)}
NUMBERS = {
    (schema, field.name): field
    for schema in SCHEMAS
    for field in fields(schema)
    if {int, float} & {get_type_hints(schema)[field.name], *get_args(get_type_hints(schema)[field.name])}
}


@pytest.mark.parametrize(("schema", "name"), sorted(NUMBERS, key=str), ids=lambda each: getattr(each, "__name__", each))
def test_every_number_has_a_range_that_ends_and_holds_its_default(schema, name):
    field: Field[Any] = NUMBERS[schema, name]
    assert "range" in field.metadata, "make it with a function of bakeoff/ranges.py"
    span: Range = field.metadata["range"]
    assert math.isfinite(max(span.least, span.above)), "no lower end"
    assert math.isfinite(min(span.most, span.below)) or name == "lr", "no upper end"
    default = field.default if isinstance(field.default, int | float) else None
    assert default is None or default in span
    for bad in (math.nan, math.inf, -math.inf, span.least - 1, span.above, 2 * span.most + 1, span.below):
        assert bad not in span


def test_the_configuration_page_is_the_code():
    assert (ROOT / "docs" / "configuration.md").read_text() == configuration_table(), "run `make docs`"


@functools.cache
def base(number: int) -> DictConfig:
    """A composed configuration of a tiny run, before it is checked and made."""
    import hydra

    (FOLDER / "mine.py").write_text(CODE)
    rows = [{"question": f"{n}+{n}", "a": f"{2 * n}"} for n in range(30)]
    (FOLDER / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))

    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", overrides=[*TINY, *BASES[number]])


def keys(node: DictConfig, prefix: str = "") -> Iterator[tuple[str, Range | None]]:
    """Every key of a composed configuration, of groups too, and its range."""
    schema = OmegaConf.get_type(node)
    spans = {field.name: field.metadata.get("range") for field in fields(schema)} if is_dataclass(schema) else {}
    for name in node:
        yield f"{prefix}{name}", spans.get(name)
        if OmegaConf.is_dict(node._get_node(name)):
            yield from keys(node[name], f"{prefix}{name}.")


@functools.cache
def keys_of(number: int) -> list[tuple[str, Range | None]]:
    return list(keys(base(number)))


SCALARS = st.one_of(
    st.sampled_from([None, True, False, "text", "", "nan", "0", 0, 1, -1, 2, 3, 2**31, 2**63, 10**30, 1e-300, 1e300]),
    st.sampled_from([math.nan, math.inf, -math.inf, -0.5, 0.5, 1.5, 99999, "${seed}", "${nothing}", "???"]),
    st.integers(),
    st.floats(),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=2), st.dictionaries(st.sampled_from("ab"), SCALARS, max_size=1))


@st.composite
def mutated(draw: st.DrawFn) -> DictConfig:
    """A composed configuration with one or two values, keys or options changed."""
    number = draw(st.integers(0, len(BASES) - 1))
    cfg = deepcopy(base(number))
    for _ in range(draw(st.integers(1, 2))):
        key, span = draw(st.sampled_from(keys_of(number)))
        kind = draw(st.sampled_from(["value", "value", "near", "near", "unknown", "option"]))
        with refused():
            if kind == "option":
                axis = draw(st.sampled_from([*sorted(AXES), "engine"]))
                options = AXES.get(axis, ENGINES)
                (cfg if axis == "engine" else cfg.algorithm)[axis] = options[draw(st.sampled_from(sorted(options)))]
            elif kind == "unknown":
                OmegaConf.update(cfg, f"{key}_", draw(VALUES), force_add=draw(st.booleans()))
            elif kind == "near" and span is not None:
                ends = [end for end in (span.least, span.above, span.most, span.below) if math.isfinite(end)]
                OmegaConf.update(cfg, key, draw(st.sampled_from(ends)) + draw(st.sampled_from([0, 1, -1, 0.5, 1e-6])))
            else:
                OmegaConf.update(cfg, key, draw(VALUES), merge=draw(st.booleans()))
    return cfg


def is_small(config: Config) -> bool:
    """Whether an update takes less than about a second."""
    step, pairs = config.algorithm.optimizer, config.preferences
    sizes = [
        config.batch.sequences * config.task.max_new_tokens * config.algorithm.group_filter.rounds / 200,
        step.epochs / 4,
        (step.epochs * step.minibatches) / 16,
        getattr(getattr(config.algorithm.critic, "optimizer", step), "epochs", 1) / 4,
        (getattr(step, "cg_iterations", 1) + getattr(step, "backtracks", 1)) / 30,
        (config.task.heldout + config.task.shots) / 16,
        config.sft.steps / 4,
        config.sft.batch / 256,
        pairs.steps / 4 + pairs.pairs / 64 + pairs.heldout / 64 + pairs.batch / 64,
        pairs.renewal_steps / 4 + pairs.renewal_pairs / 64,
        config.threads / 4,
        config.model.architecture.get("num_hidden_layers", 1e9) / 4,
        config.model.architecture.get("hidden_size", 1e9) / 256,
        config.model.architecture.get("intermediate_size", 1e9) / 1024,
        config.model.lora.rank / 64 + getattr(config.algorithm.critic, "rank", 1) / 64,
        getattr(config.task, "digits", 1) / 64,
    ]
    return config.model.name == "scratch" and max(sizes) <= 1


def made(draw_config: Any) -> Config | None:
    """The configuration, or none where it was refused in one sentence."""
    try:
        return draw_config()
    except UserError as error:
        sentence = str(error)
        assert "\n" not in sentence
        assert len(sentence) > 10
        return None


@st.composite
def typed(draw: st.DrawFn) -> list[str]:
    """A command line with one odd override."""
    number = draw(st.integers(0, len(BASES) - 1))
    key, _ = draw(st.sampled_from(keys_of(number)))
    key = draw(st.sampled_from([key, key, key.replace(".", "/"), f"{key}.more", f"{key}@more", ""]))
    text = draw(
        st.sampled_from(["text", "1", "-1", "nan", "null", "{}", "[1]", "{a: 1}", "1,2", "${x}", "${seed}", "''"])
    )
    value = draw(st.one_of(st.just(text), st.text("ab1-=+~${}[]()'\",: \n", max_size=6)))
    return [*TINY, *BASES[number], f"{draw(st.sampled_from(['', '', '+', '++', '~']))}{key}={value}"]


COMMON = {
    "deadline": None,
    "derandomize": not FUZZ,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


@settings(max_examples=10_000 if FUZZ else 100, **COMMON)
@given(st.data())
def test_a_mutated_configuration_is_refused_in_one_sentence_or_sound(data):
    config = made(lambda: validation.to_config(data.draw(mutated())))
    if config is not None:
        values = flatten(plain(config)).values()
        assert all(math.isfinite(value) for value in values if isinstance(value, float))
        assert config_id(config)


@settings(max_examples=2000 if FUZZ else 10, **COMMON)
@given(st.data())
def test_an_odd_command_line_is_refused_in_one_sentence_or_sound(data):
    GlobalHydra.instance().clear()
    config = made(lambda: validation.compose(data.draw(typed())))
    assert config is None or config_id(config)


@settings(max_examples=1000 if FUZZ else 8, **COMMON)
@given(st.data())
def test_a_sound_configuration_takes_an_update_of_finite_numbers(data):
    config = made(lambda: validation.to_config(data.draw(mutated())))
    assume(config is not None and is_small(config))
    torch.set_num_threads(1)
    try:
        metrics = update_of(loop_of(config))
    except (UserError, Diverged):
        return
    assert all(math.isfinite(value) for value in metrics.values()), metrics
