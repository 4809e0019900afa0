"""A task: training prompts, held-out prompts, and a verifier."""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

import torch

from bakeoff.batch import Example
from bakeoff.errors import UserError
from bakeoff.ranges import count

Message = dict[str, str]  # role and content, as chat templates take them
CONVERSATION = "conversation"  # the column of an example that has the messages of a completion of several turns


def as_number(score: Any) -> float:
    """Whatever `float` takes, but text, as a float; raises ValueError for anything else than a finite float32."""
    try:
        number = float("nan") if isinstance(score, str | bytes) else float(score)
    except Exception:  # of the score's own class
        number = float("nan")
    if not abs(number) <= torch.finfo(torch.float32).max:
        raise ValueError(f"{reprlib.repr(score)} is not a finite number of 32 bits")
    return number


@dataclass
class Verdict:
    """A task's verdict on a completion.

    score    the verifier's score in [0, 1]; 1 is an exact match
    grade    the true reward in [0, 1], which ranks preference pairs: finer than the score if the task scores steps
    steps    (end, score) of each step, none where the task scores none
    failed   whether the verifier gave no result, so that the others are zero
    """

    score: float
    grade: float
    steps: list[tuple[int, float]]
    failed: bool = False


@dataclass
class Task:
    """Base of all tasks. Subclasses define `generate` and `verify`, those of several turns `reply` too.

    foreign          whether the verifier is code of others, which is then called in a worker; such a task is picklable
    scores_steps     whether the task defines `verify_steps`
    heldout          number of evaluation prompts: fixed by the task, the same for every seed, never trained on
    final            number of those of the first and the last evaluation, which the configuration sets; 0: `heldout`
    turns            largest number of the policy's turns, where the task defines `reply`
    shots            number of solved examples shown before every prompt
    max_new_tokens   generation budget of a completion, or of each of its turns, EOS included
    """

    foreign = False
    scores_steps: ClassVar[bool] = False
    final = 0  # without an annotation it is not a key of the task; neither are `foreign` and `turns`
    turns = 8  # a subclass that annotates it makes it a key
    max_prompt_tokens = 0  # no bound; likewise

    heldout: int = count(256, least=1, most=2**20, unit="prompts")
    shots: int = count(0, most=1000, unit="examples")
    max_new_tokens: int = count(64, least=1, most=2**17, unit="tokens")

    def __post_init__(self) -> None:
        # hashes of the data that it has read from elsewhere, such as the Hub, by the key that names each
        self.fingerprints: dict[str, str] = {}
        self._reserved: tuple[list[Example], list[Example], set[str]] | None = None

    def files(self) -> dict[str, str]:
        """Paths of the files that the task reads, by the key that names each."""
        return {}

    def generate(self, rng: Random) -> Example:
        """One example, drawn with `rng`."""
        raise NotImplementedError

    def verify(self, completion: str, example: Example) -> float:
        """The score of a completion in [0, 1]; 1 is an exact match."""
        raise NotImplementedError

    def reply(self, messages: list[Message], example: Example) -> str | None:
        """The environment's answer to the policy's last message, none where the conversation ends.

        `messages` are the prompt and every message since, the policy's as `assistant`, the environment's as `user`.
        It is a function of its arguments alone, and raises nothing whatever the policy says. The verifier and reward
        functions then get the policy's texts, a line for each turn; the messages are the column `conversation`.
        """
        return None

    @property
    def most_turns(self) -> int:
        """Largest number of the policy's turns in a conversation: one where the task defines no `reply`."""
        return 1 if type(self).reply is Task.reply else self.turns

    @property
    def max_tokens(self) -> int:
        """Largest number of tokens that the policy writes in all of its turns."""
        return self.most_turns * self.max_new_tokens

    def judge(self, completion: str, example: Example) -> Verdict:
        """Score, grade and steps of a completion; raises what the verifier raises, and ValueError for no number."""
        score = as_number(self.verify(completion, example))
        steps = self.verify_steps(completion, example) if self.scores_steps else []
        grade = (score + sum(step for _, step in steps)) / 2 if self.scores_steps else score
        return Verdict(score, grade, steps)

    def verify_steps(self, completion: str, example: Example) -> list[tuple[int, float]]:
        """(end, score) of each step of a completion: the number of characters up to its end, and its score.

        An `end` past the text means the EOS token. Scores add up to at most 1.
        """
        raise NotImplementedError

    def difficulty(self, example: Example) -> str:
        """The example's difficulty level, by which an evaluation splits its accuracy; empty where there is only one."""
        return ""

    def demonstration(self, example: Example) -> str | list[str] | None:
        """A completion to imitate in supervised fine-tuning, or its turns; none if the task has no demonstrations."""
        return example.answer

    def stops(self) -> tuple[str, ...]:
        """Strings at which a completion ends, beside EOS; its text does not contain them."""
        return ()

    def leave_out(self, prompts: Mapping[str, int]) -> None:
        """Removes prompts from training and evaluation; called only where `max_prompt_tokens` is not 0.

        `prompts` maps each prompt, as `as_read` gives it, to its number of tokens.
        """
        raise NotImplementedError

    def sizes(self) -> str:
        """Number of prompts to train on and to evaluate on, in words; empty where they are drawn without end."""
        return ""

    def hint(self, completions: list[str], examples: list[Example]) -> str:
        """What to type where no held-out completion is right and another verifier would accept some; else empty."""
        return ""

    def known_examples(self) -> list[Example]:
        """Examples that are at hand before training: every one of a file, or else the held-out ones."""
        return self.heldout_examples()

    def heldout_examples(self) -> list[Example]:
        """The evaluation set: distinct prompts, the same in every run."""
        return self._reserve()[0][: self.heldout]

    def final_examples(self) -> list[Example]:
        """The set of the first and last evaluation: that of the others, then more, as many as the task can spare."""
        return self._reserve()[0]

    def fresh_examples(self, count: int, rng: Random) -> list[Example]:
        """At most `count` distinct examples drawn with `rng`, none of them reserved, as many as the task can spare."""
        found: dict[str, Example] = {}
        add_spared(found, count, lambda: self.training_examples(1, rng)[0])
        return list(found.values())

    def shot_examples(self) -> list[Example]:
        """The solved examples before every prompt, which are in neither set."""
        return self._reserve()[1]

    def training_examples(self, count: int, rng: Random, without: Set[str] = frozenset()) -> list[Example]:
        """`count` examples drawn with `rng`, neither reserved nor with a prompt in `without`, compared by `as_read`.

        Raises UserError where almost every prompt is excluded.
        """
        excluded = self._reserve()[2] | without if without else self._reserve()[2]
        drawn: list[Example] = []
        for _ in range(100 * count + 10_000):
            if len(drawn) == count:
                return drawn
            example = self.generate(rng)
            if as_read(example.prompt) not in excluded:
                drawn.append(example)
        raise UserError(
            f"task.heldout is {self.heldout}, which leaves almost no prompt to train on; it must be well below the "
            "task's number of distinct prompts."
        )

    def is_reserved(self, prompt: str) -> bool:
        """Whether a prompt is held out or shown as a solved example, so that nothing may be trained on it."""
        return as_read(prompt) in self._reserve()[2]

    def _reserve(self) -> tuple[list[Example], list[Example], set[str]]:
        if self._reserved is None:
            rng = Random("heldout")
            found: dict[str, Example] = {}
            wanted = self.heldout + self.shots
            for _ in range(100 * wanted + 10_000):
                if len(found) == wanted:
                    break
                example = self.generate(rng)
                found.setdefault(as_read(example.prompt), example)
            else:
                raise UserError(
                    f"task.heldout is {self.heldout}, but the task has only {len(found)} distinct prompts; it must be "
                    "well below that number."
                )
            add_spared(found, self.final + self.shots, lambda: self.generate(rng))
            examples = list(found.values())
            if any(example.answer is None for example in examples[: self.shots]):
                raise UserError(
                    f"task.shots is {self.shots}, but the task's examples have no answer; set task.shots=0."
                )
            self._reserved = examples[self.shots :], examples[: self.shots], set(found)
        return self._reserved


def add_spared(found: dict[str, Example], count: int, draw: Callable[[], Example]) -> None:
    """Adds drawn examples by prompt until there are `count`, or until one draw in twenty repeats a prompt.

    By then a task with few prompts has spared about a tenth of them; the others are for training.
    """
    draws = repeats = 0
    while len(found) < count and repeats <= 2 + draws / 20:
        example = draw()
        draws += 1
        repeats += as_read(example.prompt) in found
        found.setdefault(as_read(example.prompt), example)


def as_read(prompt: str) -> str:
    """The prompt up to what templates and tokenizers change: the form of its characters, and white space."""
    return " ".join(unicodedata.normalize("NFKC", prompt).split())
