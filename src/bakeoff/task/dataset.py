"""A data set of the user's: prompts by template or messages, answers by column, held-out prompts of their own."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

from omegaconf import MISSING

from bakeoff.batch import Example
from bakeoff.errors import UserError, within
from bakeoff.ranges import count, share
from bakeoff.task.examples import examples_of
from bakeoff.task.table import Format, read_table, rows_hash, shown
from bakeoff.task.task import Task, Verdict, as_number, as_read
from bakeoff.task.verify import COMPARED, Extract, Verify, hint
from bakeoff.user_code import Signature, anywhere, load, signature, source_of

READING_S = 300.0  # seconds; 10 000 rows take less than one


@dataclass
class Dataset(Task):
    """Prompts and answers from a file, a folder or the Hub. Reward functions receive every other column.

    path                a JSONL, JSON, CSV or Parquet file, a folder of them or one saved by save_to_disk, or owner/name
                        of a data set of the Hub
    format              format of a file; auto: by its ending, JSONL for an unknown one
    name                configuration of a data set of the Hub
    split               split of a folder or of a data set of the Hub
    revision            revision of a data set of the Hub; empty: the newest
    prompt              column, or Jinja template over the columns; a column may hold the messages of a chat; empty: the
                        column prompt or messages
    answer              column or template of the right answer; empty: the column answer or completion, or the last
                        message of an assistant
    answer_pattern      regular expression; its last match, or the group in it, replaces the answer
    solution            column or template of the worked answer, which fine-tuning imitates and solved examples show;
                        empty: the answer
    demonstrate         whether supervised fine-tuning may imitate the answers
    system              system prompt, before every prompt
    examples            solved examples before every prompt, each with the keys prompt and completion
    heldout_path        file, folder or data set of held-out prompts; empty: they are drawn from `path`
    heldout_split       split of held-out prompts, of heldout_path or of path
    heldout_share       share of held-out prompts, chosen by a hash of the prompt; 0: `heldout` prompts are drawn
    max_prompt_tokens   number of tokens, with template and solved examples, above which prompts are left out; 0: none
    stop                strings that end a completion and are not part of it; \\n is a line feed
    verify              how an answer is compared with the right one
    extract             part of a completion that is compared
    after               regular expression after which the answer stands, for extract=after
    function            module.function or file.py:function for verify=function, called with the extracted text, the
                        answer, and every column by name; it returns a score from 0 to 1
    """

    path: str = MISSING
    format: Format = Format.auto
    name: str = ""
    split: str = "train"
    revision: str = ""
    prompt: str = ""
    answer: str = ""
    answer_pattern: str = ""
    solution: str = ""
    demonstrate: bool = True
    system: str = ""
    examples: list[dict[str, str]] = field(default_factory=list)
    heldout_path: str = ""
    heldout_split: str = ""
    heldout_share: float = share(0.0)
    max_prompt_tokens: int = count(0, most=2**20, unit="tokens")
    stop: list[str] = field(default_factory=list)
    verify: Verify = Verify.exact  # type: ignore[assignment]  # the key; `judge` is the method
    extract: Extract = Extract.whole
    after: str = ""
    function: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check()
        self._source = ""
        self._signature: Signature | None = None
        self._score = self._verifier()
        # code of others, math-verify and a user's pattern may take for ever
        self.foreign = self.verify in (Verify.math, Verify.function) or self.extract is Extract.after
        self._own: list[Example] | None = None
        self._examples = self._read("path", self.path, self.split)
        columns = self._examples[0].columns
        missing = self._signature.missing(columns) if self._signature else None
        if missing:
            raise UserError(
                f"task.function: {self.function} needs the argument {', '.join(missing)}, but is called with the "
                f"text, the answer and the columns {', '.join(columns)}; name one of these, or give it a default."
            )
        self._repeated = self._long = 0
        if self.heldout_path or self.heldout_split:
            key = "heldout_path" if self.heldout_path else "path"
            held = self._read(key, self.heldout_path or self.path, self.heldout_split or self.split)
        elif self.heldout_share:
            held = [example for example in self._examples if hashed(example.prompt) < self.heldout_share]
        else:
            return
        own = {as_read(example.prompt): example for example in held}
        training = [example for example in self._examples if as_read(example.prompt) not in own]
        self._repeated = 0 if self.heldout_share else len(self._examples) - len(training)
        self._examples, self._own = training, list(own.values())
        Random("heldout").shuffle(self._own)  # files are sorted, by difficulty or by subject
        self._require_both("the held-out prompts leave")

    def _check(self) -> None:
        """Raises UserError for keys that do not go together, before anything is read."""
        if self.heldout_share and (self.heldout_path or self.heldout_split):
            raise UserError(
                f"task.heldout_share is {self.heldout_share}, but task.heldout_path or task.heldout_split names the "
                "held-out prompts already; leave one of the two out."
            )
        for key, pattern in (("answer_pattern", self.answer_pattern), ("after", self.after)):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(
                    f"task.{key} is {pattern!r}, which is not a regular expression ({error}); mend the pattern."
                ) from error
        if (self.extract is Extract.after) != bool(self.after):
            raise UserError(
                f"task.extract is {self.extract.value} and task.after is {self.after!r}; task.extract=after needs a "
                "pattern in task.after, and every other value needs task.after to be empty."
            )
        if (self.verify is Verify.function) != bool(self.function):
            raise UserError(
                f"task.verify is {self.verify.value} and task.function is {self.function!r}; task.verify=function "
                "needs a function, and every other value needs task.function to be empty."
            )
        held = "" if self.heldout_path else self.heldout_split
        for key, split, default in (("split", self.split, type(self).split), ("heldout_split", held, "")):
            if split != default and os.path.isfile(os.path.expanduser(self.path)):
                raise UserError(
                    f"task.{key} is {split!r}, but task.path is the file '{self.path}', which has no splits; set "
                    f"task.{key}={default}. task.heldout_path names another file, task.heldout_share a part of this "
                    "one."
                )
        if "" in self.stop:
            raise UserError(f"task.stop is {self.stop}; a stop string must have a character.")
        for shot in self.examples:
            if set(shot) != {"prompt", "completion"}:
                raise UserError(f"task.examples has {shown(shot)}; each must have the keys prompt and completion.")

    def _verifier(self) -> Callable[[str, Example], Any]:
        """(extracted text, example) → its score."""
        if self.verify is Verify.function:
            function = load(self.function, "task.function", ())
            called = self._signature = signature(function, f"task.function: {self.function}", given=2)
            self._source = self.function.rpartition(":")[0] or source_of(function)

            def score(text: str, example: Example) -> Any:
                columns = {name: value for name, value in example.columns.items() if called.accepts(name)}
                return function(text, example.answer, **columns)

            return score
        if self.verify is Verify.math and importlib.util.find_spec("math_verify") is None:
            raise UserError("task.verify is math, which needs a package: pip install 'math-verify[antlr4-9-3]'.")
        compare = COMPARED[self.verify]
        return lambda text, example: example.answer is not None and compare(text, example.answer)

    def __deepcopy__(self, memo: dict[int, Any]) -> Dataset:
        copied = object.__new__(type(self))
        own = {name: deepcopy(getattr(self, name), memo) for name in self.__dataclass_fields__}
        copied.__dict__.update(self.__dict__ | own)  # the data, which nothing changes, is shared
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """What a worker needs to judge: no data."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"function": anywhere(self.function)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._score = self._verifier()
        if self.verify is Verify.math:  # a worker imports it before the first completion, whose time is limited
            COMPARED[Verify.math]("$1$", "1")

    def files(self) -> dict[str, str]:
        named = {"path": self.path, "heldout_path": self.heldout_path, "function": self._source}
        return {key: path for key, path in named.items() if path}

    def generate(self, rng: Random) -> Example:
        return rng.choice(self._examples)

    def judge(self, completion: str, example: Example) -> Verdict:
        score = as_number(self._score(self.extract(completion, self.after), example))
        if not 0 <= score <= 1:
            raise ValueError(f"{score} is not a score from 0 to 1")
        return Verdict(score, score, [])

    def demonstration(self, example: Example) -> str | None:
        return self._worked(example) if self.demonstrate else None

    def _worked(self, example: Example) -> str | None:
        return example.answer if example.solution is None else example.solution

    def known_examples(self) -> list[Example]:
        return [*self._examples, *(self._own or [])]

    def shot_examples(self) -> list[Example]:
        own = [Example(shot["prompt"], shot["completion"]) for shot in self.examples]
        return own + [Example(each.prompt, self._worked(each)) for each in super().shot_examples()]

    def stops(self) -> tuple[str, ...]:
        # a command line keeps the two characters that YAML reads as a line feed; before a letter, as in \nuser and in
        # LaTeX's \neq, they may be either
        both = ((each.replace("\\n", "\n"), re.sub(r"\\n(?![a-z])", "\n", each)) for each in self.stop)
        return tuple(dict.fromkeys(chain.from_iterable(both)))

    def leave_out(self, prompts: Mapping[str, int]) -> None:
        """Drops prompts, as they are read, from training and from evaluation, and counts them."""
        held, shots, excluded = self._reserve()
        before = len(self.known_examples())

        def kept(examples: list[Example]) -> list[Example]:
            return [example for example in examples if as_read(example.prompt) not in prompts]

        self._examples = kept(self._examples)
        self._own = None if self._own is None else kept(self._own)
        held = kept(held) if self._own is None else self._own[: max(self.heldout, self.final)]
        self._reserved = held, shots, excluded
        self._long += before - len(self.known_examples())
        bound = f"task.max_prompt_tokens is {self.max_prompt_tokens}"
        self._require_both(
            f"{bound} and the shortest prompt above it has {min(prompts.values(), default=0)}, which leaves"
        )

    def _require_both(self, cause: str) -> None:
        """Raises UserError where nothing is left to train on, or to evaluate on."""
        held = self._own if self._reserved is None else self._reserved[0]
        for examples, purpose in ((self._examples, "train on"), (held, "evaluate on")):
            if examples == []:
                raise UserError(f"task.path is '{self.path}': {cause} no prompt to {purpose}.")

    def sizes(self) -> str:
        held, training = self.heldout_examples(), {as_read(example.prompt) for example in self._examples}
        training -= self._reserve()[2]
        source = self.heldout_path or self.heldout_split or "the same data"
        final = f", {len(self.final_examples()):,} by the last" if self.final > self.heldout else ""
        words = [
            f"data: {len(training):,} training prompts of {self.path}",
            f"{len(self._own or self._reserve()[0]):,} held-out prompts of {source}, of which an evaluation reads "
            f"{len(held):,}{final}",
        ]
        if self._repeated:
            words.append(f"{self._repeated:,} rows left out of training, whose prompts are held out")
        if self._long:
            words.append(f"{self._long:,} rows left out, with more than {self.max_prompt_tokens:,} tokens")
        for examples, kind in ((self._examples, "training"), (held, "held-out")):
            if all(example.answer is None for example in examples) and self.verify is not Verify.function:
                words.append(f"no answers to {kind} prompts, all of which score 0 unless task.verify=function judges")
        return "; ".join(words)

    def hint(self, completions: list[str], examples: list[Example]) -> str:
        return hint(completions, examples) if self.verify is Verify.exact else ""

    def _reserve(self) -> tuple[list[Example], list[Example], set[str]]:
        if self._reserved is None:
            shown = {as_read(shot["prompt"]) for shot in self.examples}
            if self._own is None:
                held, shots, excluded = super()._reserve()
                self._reserved = held, shots, excluded | shown
            else:
                drawn: dict[str, Example] = {}
                rng = Random("shots")
                for example in rng.sample(self._examples, len(self._examples)) if self.shots else []:
                    if len(drawn) < self.shots and self._worked(example) is not None:
                        drawn.setdefault(as_read(example.prompt), example)
                if len(drawn) < self.shots:
                    raise UserError(
                        f"task.shots is {self.shots}, but the data has {len(drawn)} prompts with an answer; it must be "
                        "well below that number."
                    )
                held_out = {as_read(example.prompt) for example in self._own}
                self._reserved = (
                    self._own[: max(self.heldout, self.final)],
                    list(drawn.values()),
                    held_out | set(drawn) | shown,
                )
        return self._reserved

    def _read(self, key: str, path: str, split: str) -> list[Example]:
        """The examples of a table; raises UserError that names the row which cannot be used."""
        revision = self.revision if path == self.path else ""
        rows = read_table(f"task.{key}", path, self.format, self.name, split, revision)
        if not Path(path).expanduser().exists():  # of the Hub
            self.fingerprints[key] = rows_hash(rows)
        slow = f"task.{key}: the rows have not become examples within {READING_S:g} s; mend the template or pattern."
        with within(READING_S, slow):
            return examples_of(rows, self, f"task.{key}", path)


def hashed(prompt: str) -> float:
    """A number in [0, 1) that only the prompt decides: what is held out stays so when the file grows."""
    return int.from_bytes(hashlib.sha256(as_read(prompt).encode()).digest()[:7], "big") / 2**56
