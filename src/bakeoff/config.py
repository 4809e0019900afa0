"""The typed schema of every Hydra group."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from bakeoff.algorithm import AXES, Algorithm
from bakeoff.algorithm.critic import CRITIC_LR, FACTOR, OwnStep
from bakeoff.engine import ENGINES
from bakeoff.engine.engine import Batch, Engine, Sampling
from bakeoff.errors import UserError
from bakeoff.hardware import Hardware
from bakeoff.mlflow_store import Tracking
from bakeoff.model.config import Model
from bakeoff.overrides import extend_grammar
from bakeoff.paths import CONF, ROOT, study_folders
from bakeoff.ranges import VAST, count, number, rate, seed, share
from bakeoff.regime import Regime
from bakeoff.reward.function import UserFunction, as_values
from bakeoff.reward.preferences import Preferences
from bakeoff.reward.reward import Reward
from bakeoff.task import TASKS
from bakeoff.task.task import Task
from bakeoff.user_code import import_named, require_loggable


@dataclass
class Sft:
    """Supervised fine-tuning on the task's demonstrations: the start of actor and reference. 0 steps: no such stage.

    Runs of one `seed` share their start, whatever the method. Where it is the run's seed, as on sort, a comparison is
    over several starts.

    steps      number of AdamW steps; the maximum, where `accuracy` is set
    accuracy   the stage ends once this share of sampled completions is right, on prompts that are neither held out nor
               trained on; 0: after `steps`
    batch      number of demonstrations of a step
    lr         learning rate
    seed       seed of the model's random weights and of the demonstrations
    """

    steps: int = count(0, unit="steps")
    accuracy: float = share(0.0)
    batch: int = count(256, least=1, most=2**20, unit="demonstrations")
    lr: float = rate(3e-3)
    seed: int = seed()


class Unit(Enum):
    """Unit of a budget."""

    updates = "updates"
    sequences = "sequences"
    tokens = "tokens"
    seconds = "seconds"
    work = "work"


@dataclass
class Budget:
    """A run ends with the first update after which its budget is used.

    unit             what is counted; seconds are those of training alone, work is that of tokens: 1 for each token that
                     a step of actor or critic reads
    limit            length of the run, in budget.unit
    sampling_price   work of a token that is sampled
    """

    unit: Unit = Unit.sequences
    limit: float = number(25_600, above=0, most=10**15, unit="budget.unit")
    sampling_price: float = number(1.0, least=0, most=VAST)


@dataclass
class Evaluation:
    """Evaluation on held-out prompts, also at the start and at the end.

    every     number of updates between evaluations
    samples   number of sampled completions per prompt, beside the greedy one
    final     number of held-out prompts of the first and the last evaluation: those of the others and more, at most
              about a tenth of the task's; 0: task.heldout
    """

    every: int = count(10, least=1, unit="updates")
    samples: int = count(1, least=1, most=2**16, unit="completions")
    final: int = count(0, most=2**20, unit="prompts")


@dataclass
class Measure:
    """Measurements that training itself does not need.

    kl_to_start         measure the KL to the start, even where the method itself asks for no reference
    kl_sequences        number of sequences on which the KL of an update is measured, in an extra forward pass; 0: all.
                        A β that adapts to this KL reads all of them
    memory_prediction   log the predicted memory beside the measured one
    memory_snapshot     CUDA: record every allocation of the traced updates, as an artifact for pytorch.org/memory_viz
    functions           metrics of yours, each an import path `module.function` or a function in a file,
                        `./file.py:function`, which is relative to the working folder
    """

    kl_to_start: bool = True
    kl_sequences: int = count(64, unit="sequences")
    memory_prediction: bool = False
    memory_snapshot: bool = False
    functions: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.user: dict[str, UserFunction] = {}  # by the name under which it is logged
        for path in self.functions:
            function = UserFunction(path, "measure.functions", as_values, ())
            require_loggable(path, "measure.functions")
            name = function.name.rpartition(".")[2]
            if name in self.user:
                raise UserError(f"measure.functions names two functions {name}; rename one, as each is logged by name.")
            self.user[name] = function

    def files(self) -> dict[str, str]:
        """The source files of the functions, by the key and path of each."""
        return {f"functions.{path}": each.source for path, each in zip(self.functions, self.user.values(), strict=True)}


@dataclass
class Checkpoint:
    """Checkpoints, from which a run resumes, and the finished actor.

    every     number of updates between checkpoints; 0: none
    keep      number of latest checkpoints that are kept
    actor     save the finished actor, a folder that transformers opens; false saves the room of a model per run
    adapter   save the finished actor of model.lora as an adapter; otherwise it is merged into its base
    """

    every: int = count(20, unit="updates")
    keep: int = count(2, least=1, unit="checkpoints")
    actor: bool = True
    adapter: bool = False


@dataclass
class Study:
    """A study, as its file in sweeps/ describes it; its name is the file's.

    question       what the study asks, in words
    tuning_seeds   seeds on which its values were chosen, apart from those that it reports
    varies         keys that differ between arms on purpose: reports do not flag them as unmatched, and a sweep's folder
                   accepts jobs that differ in them
    baseline       arm that the others are compared with; empty: every pair is compared, and corrected for their number
    margin         difference in accuracy within which arms count as equivalent
    threshold      held-out accuracy that runs are timed to; 0: half way between the start and 1
    """

    question: str = ""
    tuning_seeds: list[int] = seed(list)
    varies: list[str] = field(default_factory=list)
    baseline: str = ""
    margin: float = number(0.02, above=0, most=1)
    threshold: float = share(0.0)


@dataclass
class Tuned:
    """How the tuned values of a run were chosen; without a name there are none.

    name         the file in conf/tuned that holds the values and this record
    command      command of the search; it leaves out what the file sets beside the searched keys
    trials       number of runs behind the choice, also those of earlier searches
    seeds        seeds of those runs
    accuracies   final held-out accuracies of the runs with the chosen values, by seed; bakeoff-tune writes sampled ones
    date         day of the search, as year-month-day
    commit       commit of the search
    task         hash of the task, the model and the reward of the search
    note         what the other fields cannot say
    """

    name: str = ""
    command: str = ""
    trials: int = count(0, unit="runs")
    seeds: list[int] = seed(list)
    accuracies: list[float] = number(list, least=0, most=1)
    date: str = ""
    commit: str = ""
    task: str = ""
    note: str = ""


@dataclass
class Lengths:
    """Lengths that a prediction assumes.

    prompt       tokens of the longest prompt; 0: counted in the task's prompts, where the model's tokenizer is at hand
    completion   tokens of the longest completion; 0: task.max_new_tokens for each turn, without replies
    """

    prompt: int = count(0, most=2**20, unit="tokens")
    completion: int = count(0, most=2**20, unit="tokens")


class Mode(Enum):
    """Purpose of a run with this configuration.

    train               training
    predict             prediction of memory and time of every phase, without weights and device
    gradient_quality    comparison of the method's gradient at the start with that of a large sample
    advantage_quality   comparison of the method's advantages at the start with mean scores of many continuations
    """

    train = "train"
    predict = "predict"
    gradient_quality = "gradient_quality"
    advantage_quality = "advantage_quality"


@dataclass
class Quality:
    """Sizes of the modes that measure quality, in rollouts of `batch.prompts` × `batch.group_size` completions.

    critic_updates      number of updates that train a critic alone, before anything is measured
    batches             number of rollouts whose gradients are compared
    reference_batches   number of rollouts behind the mean gradient that they are compared with
    continuations       number of completions from every state, for each of two estimates
    """

    critic_updates: int = count(40, unit="updates")
    batches: int = count(64, least=2, unit="rollouts")
    reference_batches: int = count(256, least=2, unit="rollouts")
    continuations: int = count(32, least=1, most=2**16, unit="completions")


@dataclass
class Config:
    """One run; `config_id` hashes it without seed and bookkeeping.

    seed              seed of every draw of the run
    device            device of the run; auto: the first GPU, or the CPU where there is none
    threads           number of CPU threads of a process; 0: torch's choice
    processes         number of processes that make the run together, each with a GPU of its own where there are any;
                      torchrun and srun set it themselves
    shard             each process holds a part of the weights and of the optimisers' state
    micro_tokens      upper bound on the tokens that a pass of the learner reads at once, padding included; 0: none
    logits_mb         upper bound on the float32 logits of a chunk of tokens, in MB; a pass holds several such chunks;
                      0: 128 on the CPU, 1024 on a GPU
    offload           models and optimisers that a phase does not use wait in the host's memory
    deterministic     on a GPU, compute by algorithms whose results repeat bit for bit; the CPU's do in any case
    mode              purpose of the run: training, a prediction of memory, or a measurement of quality
    memory_limit_mb   a run that needs more memory, in MB, ends as out of memory; 0: no limit
    price             price of an hour on the hardware of one process, for a prediction; 0: not stated
    reuse             factor on the number of epochs over a rollout, for methods that may use it more than once
    lag               age of the sampler's weights, in updates, as where rollouts and steps overlap
    lr_factors        factors on the method's learning rates, or on the radius of a trust region: a run takes that of
                      its seed, so that a comparison covers seeds and rates; empty: 1
    arm               name of the arm in the study's file, empty where the study has none
    """

    task: Task = MISSING
    model: Model = MISSING
    sft: Sft = field(default_factory=Sft)
    algorithm: Algorithm = MISSING
    reward: Reward = MISSING
    preferences: Preferences = field(default_factory=Preferences)
    engine: Engine = MISSING
    batch: Batch = field(default_factory=Batch)
    sampling: Sampling = field(default_factory=Sampling)
    budget: Budget = field(default_factory=Budget)
    evaluation: Evaluation = field(default_factory=Evaluation)
    measure: Measure = field(default_factory=Measure)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    tracking: Tracking = MISSING
    study: Study = field(default_factory=Study)
    regime: Regime = field(default_factory=Regime)
    seed: int = seed()
    device: str = "auto"
    threads: int = count(0, most=1024, unit="threads")
    processes: int = count(1, least=1, most=2**16, unit="processes")
    shard: bool = False
    micro_tokens: int = count(0, unit="tokens")
    logits_mb: float = number(0.0, least=0, most=VAST, unit="MB")
    offload: bool = False
    deterministic: bool = False
    memory_limit_mb: float = number(0.0, least=0, most=VAST, unit="MB")
    mode: Mode = Mode.train
    quality: Quality = field(default_factory=Quality)
    lengths: Lengths = field(default_factory=Lengths)
    hardware: Hardware = field(default_factory=Hardware)
    price: float = number(0.0, least=0, most=VAST, unit="your currency")
    tuned: Tuned = field(default_factory=Tuned)
    reuse: int = count(1, least=1, most=1000, unit="times")
    lag: int = count(0, most=64, unit="updates")
    lr_factors: list[float] = number(list, above=0, most=VAST)
    arm: str = ""

    def __post_init__(self) -> None:
        self.task.final = self.evaluation.final  # which prompts are held out is one decision, made by the task


def register() -> None:
    """Registers with Hydra the schemas, and the folders of configurations and studies. Idempotent.

    The modules of the user's that $BAKEOFF_IMPORT names are imported first: they may add options, tasks and engines.
    """
    import_named(os.environ.get("BAKEOFF_IMPORT", ""), "$BAKEOFF_IMPORT")
    extend_grammar()
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for axis, options in AXES.items():
        for name, option in options.items():
            node = OmegaConf.structured(option)
            if isinstance(option, OwnStep):
                node.optimizer.lr = "${bakeoff_critic_lr:}"
            store.store(group=f"algorithm/{axis}", name=name, node=node)
    groups: dict[str, dict[str, Any]] = {"engine": ENGINES, "task": TASKS, "hardware": {"none": Hardware}}
    for group, classes in groups.items():
        for name, option in classes.items():
            if not (CONF / group / f"{name}.yaml").is_file():  # a file takes the schema below, and sets values
                store.store(group=group, name=name, node=option)
    schemas = TASKS | {"model": Model, "reward": Reward, "tracking": Tracking, "hardware": Hardware}
    for name, schema in schemas.items():
        store.store(name=f"schema_{name}", node=schema)
    OmegaConf.register_new_resolver("bakeoff_critic_lr", critic_lr, replace=True)
    OmegaConf.register_new_resolver("bakeoff_folders", searchpath, replace=True)
    OmegaConf.register_new_resolver("bakeoff_token", lambda: secrets.token_hex(3), use_cache=True, replace=True)
    OmegaConf.register_new_resolver("div", lambda a, b: int(a) // int(b), replace=True)
    OmegaConf.register_new_resolver("mul", lambda a, b: int(a) * int(b), replace=True)


def critic_lr(*, _root_: Any) -> float:
    """A critic's rate where none is set: a multiple of the actor's, but where that is the scale of a trust region."""
    actor = _root_.algorithm.optimizer
    whole = getattr(OmegaConf.get_type(actor), "needs_whole_rollout", False)
    return CRITIC_LR if whole else float(f"{FACTOR * actor.lr:.6g}")


def searchpath() -> list[str]:
    """Folders in which Hydra looks for groups, beside conf/: those that hold sweeps/, and the user's own conf/."""
    own = [folder / "conf" for folder in study_folders() if folder != ROOT and (folder / "conf").is_dir()]
    return [f"file://{folder}" for folder in [*own, *(f for f in study_folders() if (f / "sweeps").is_dir())]]
