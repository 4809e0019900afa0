"""The conditions of a study, all that a reader needs to judge a stranger's page, and the commands that give it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from bakeoff.files import HASH
from bakeoff.report.naming import shortened
from bakeoff.report.statistics import counted
from bakeoff.report.study import Study, tuning_seeds
from bakeoff.report.tables import in_html

MOST = 6  # values of a condition that a page lists
TAGS = ("task", "model", "device", "torch", "commit")  # of a run
BATCH = (
    "{batch.prompts} prompts × {batch.group_size} completions of at most {task.max_new_tokens} tokens, "
    "temperature {sampling.temperature}"
)
Params = dict[str, str]  # of a run, by key, as text


def setup(study: Study) -> dict[str, str]:
    """Each condition by its name; one that the runs do not say is left out."""
    seeds = [str(seed) for seed in sorted(study.runs["seed"].unique())]
    tuned = tuning_seeds(study)
    counts = [counted(len(study.arms), "arm"), counted(len(study.runs), "finished run")]
    if len(study.unfinished):
        counts.append(f"{len(study.unfinished)} unfinished")
    tags = {tag: listed(study.runs[tag]) for tag in (*TAGS, "data") if tag in study.runs}
    own = params(study)
    found = {
        "task": tags.get("task", ""),
        "data": tags.get("data", "").removeprefix("data: ") or listed(map(drawn, own)),
        "files (SHA-256)": listed(map(files, own)),
        "verifier": listed(map(verifier, own)),
        "reward": listed(map(reward, own)),
        "model": tags.get("model", ""),
        "start": listed(map(start, own)),
        "batch": listed(filled(BATCH, run) for run in own),
        "budget of a run": listed(filled("{budget.limit} {budget.unit}", run) for run in own),
        "learning rates": rates(study, own),
        "runs": ", ".join(counts),
        "seeds": listed(seeds) + (f"; tuned on {tuned}" if tuned else ""),
        "device": tags.get("device", ""),
        "torch": tags.get("torch", ""),
        "commit": tags.get("commit", ""),
        "date (UTC)": " to ".join(dict.fromkeys([min(dates), max(dates)])) if (dates := days(study)) else "",
        "command of the runs": study.command or f"bakeoff sweeps={study.name}",
        "command of this page": study.report or f"bakeoff-report {study.name}",
    }
    return {key: value for key, value in found.items() if value}


def params(study: Study) -> list[Params]:
    """The parameters of every run, in the order of the runs."""
    of_run = {run: dict(zip(own["key"], own["value"], strict=True)) for run, own in study.params.groupby("run")}
    return [of_run.get(run, {}) for run in study.runs["run"]]


def days(study: Study) -> list[str]:
    """The days on which the runs started, in UTC."""
    return [day for day in study.runs["date"] if day] if "date" in study.runs else []


def filled(text: str, run: Params) -> str:
    """A text with each `{group.key}` filled in from a run's parameters; empty where it lacks one."""
    try:
        return re.sub(r"\{([\w.]+)\}", lambda key: plain(run[key[1]]), text)
    except KeyError:
        return ""


def plain(value: str) -> str:
    """A parameter as a page shows it: `65,536` for `65536.0`."""
    try:
        return f"{float(value):,.6g}"
    except ValueError:
        return value


def positive(run: Params, key: str) -> bool:
    """Whether a parameter is a number above 0; one that is missing or damaged is not."""
    try:
        return float(run[key]) > 0
    except (KeyError, ValueError):
        return False


def start(run: Params) -> str:
    """The supervised stage, if there is one."""
    if not positive(run, "sft.steps"):
        return ""
    text = "{sft.steps} supervised steps"
    return filled(
        f"at most {text}, until {{sft.accuracy}} of its samples are right" if positive(run, "sft.accuracy") else text,
        run,
    )


def drawn(run: Params) -> str:
    """The held-out prompts of a task that makes its prompts."""
    more = ", {evaluation.final} by the first and the last evaluation" if positive(run, "evaluation.final") else ""
    return filled("generated; {task.heldout} held-out prompts" + more, run)


def files(run: Params) -> str:
    """The files of the task and the reward, each with the beginning of its hash."""
    hashes = {key.removesuffix(HASH): value[:8] for key, value in run.items() if key.endswith(HASH)}
    named = {key: run.get(key, key) if key.startswith("task.") else key.split(".", 2)[-1] for key in hashes}
    own = [key for key in hashes if key.startswith(("task.", "reward."))]
    return "; ".join(f"{named[key]} {hashes[key]}" for key in own)


def verifier(run: Params) -> str:
    """The keys that say how a part of the completion is compared with the right answer."""
    keys = ("generator", "verify", "extract", "after", "function")
    return " ".join(f"{key}={run[f'task.{key}']}" for key in keys if run.get(f"task.{key}"))


def reward(run: Params) -> str:
    """Every term with its weight, of completions and of steps, and the values of the terms that have some."""
    terms = []
    for group, of in (("reward.functions.", ""), ("reward.process.", " of steps")):
        own = {key.removeprefix(group): value for key, value in run.items() if key.startswith(group)}
        terms += [f"{plain(weight)} × {name}{of}" for name, weight in own.items() if not name.endswith(HASH)]
    form = "reward.format.pattern" if run.get("reward.format.pattern") else "reward.format.tags"  # in place of the tags
    about = {"format": form, "length": "reward.length.margin_share"}
    own_values = [
        key for name, key in about.items() if key in run and any(each.endswith(f"× {name}") for each in terms)
    ]
    values = [f"{key.split('.')[-1]} {run[key]}" for key in own_values]
    if positive(run, "reward.missing_eos_penalty"):
        values.append(filled("−{reward.missing_eos_penalty} without EOS", run))
    return "; ".join([" + ".join(terms), *values] if terms else [])


def rates(study: Study, own: list[Params]) -> str:
    """The learning rate of each arm, or the radius of its trust region, and the search that found it."""
    found: dict[str, str] = {}
    tags = study.runs["tuned"] if "tuned" in study.runs else [""] * len(own)
    for name, tuned, run in zip(study.runs["name"], tags, own, strict=True):
        key = "algorithm.optimizer.max_kl" if "algorithm.optimizer.max_kl" in run else "algorithm.optimizer.lr"
        if name not in found and key in run:
            used = f"KL at most {plain(run[key])}" if key.endswith("max_kl") else plain(run[key])
            critic = run.get("algorithm.critic.optimizer.lr")
            used += f", critic {plain(critic)}" if critic else ""
            trials = filled(", {tuned.trials} trials, {tuned.date}", run)
            found[name] = f"{used} ({'not tuned' if tuned in ('untuned', '') else f'tuned in {tuned}{trials}'})"
    return "; ".join(shortened([f"{name} {text}" for name, text in found.items()], MOST))


def listed(values: Iterable[Any]) -> str:
    """The values that differ, in their order, at most MOST."""
    different = dict.fromkeys(str(value) for value in values if str(value).strip())
    return ", ".join(shortened(list(different), MOST))


def commands(study: Study) -> str:
    """The commands that make the runs and the page, one a line."""
    made = setup(study)
    return f"{made['command of the runs']}\n{made['command of this page']}"


def setup_html(study: Study) -> str:
    """`setup` as a section of a page, which is Markdown too."""
    found = setup(study)
    found["command of the runs"] = "; ".join(found["command of the runs"].splitlines())  # of several launches
    cells = {key: in_html(value) for key, value in found.items()}
    cells |= {key: f"<code>{value}</code>" for key, value in cells.items() if "command" in key}
    rows = "".join(f"<tr><th>{key}</th><td>{value}</td></tr>" for key, value in cells.items())
    return f'<h2 id="set-up">Set-up</h2>\n<div class="frame"><table class="setup">{rows}</table></div>'
