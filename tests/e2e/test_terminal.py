"""What a person sees: the one screen, completion, the live views at 80 columns, interrupts, and the UI's addresses."""

import fcntl
import io
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console

from bakeoff.configuration import every_key
from bakeoff.progress import HEAD, RunProgress, Standing
from bakeoff.terminal import plain_table
from bakeoff.tracking import start_run
from bakeoff.watch import Row, sweep_table, watching
from tests.commands import call, store_of
from tests.stored import tracking

ROOT = Path(__file__).resolve().parents[2]
SHORT = [
    *("batch.prompts=4", "batch.group_size=2", "sft={steps: 2, accuracy: 0}", "task.heldout=8", "threads=1"),
    *("checkpoint.every=0", "evaluation.every=2", "budget={unit: updates, limit: 3}"),
]


def bakeoff(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, which has imported nothing."""
    command = [sys.executable, *environment.pop("python", "").split(), "-m", "bakeoff", *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=120)


def on_a_terminal(*arguments: str, cwd: Path, until: str = "") -> tuple[int, str]:
    """Exit code and output of `bakeoff …` on a terminal of 80 columns; Ctrl-C is typed when it shows `until`.

    The code is that of a shell, 130 for an interrupt: one that meets C code which runs Python, as in an import of
    torch, makes Python end by the signal, whoever catches the exception.
    """
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(cwd)
        os.environ.pop("COLUMNS", None)
        os.execve(sys.executable, [sys.executable, "-m", "bakeoff", *arguments], os.environ | {"TERM": "xterm"})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    shown, deadline = b"", time.monotonic() + 300
    try:
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 1.0)[0]:
                try:
                    shown += os.read(terminal, 65536)
                except OSError:  # the command has ended
                    break
                if until and until in shown.decode(errors="replace"):
                    os.write(terminal, b"\x03")
                    until = ""
    finally:
        if time.monotonic() >= deadline:
            os.kill(process, signal.SIGKILL)
        os.close(terminal)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code if code >= 0 else 128 - code, shown.decode(errors="replace")


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_the_command_alone_and_its_help_answer_on_one_screen_without_torch(arguments):
    shown = bakeoff(*arguments, python="-X importtime")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) < 80
    for word in (
        "algorithm=grpo",
        "sweeps=methods",
        "resume=",
        "--help all",
        "budget.limit",
        "  task ",
        "bakeoff-report",
    ):
        assert word in shown.stdout
    assert "torch.nn" not in shown.stderr


def test_every_key_and_choice_is_printed_with_its_meaning_on_request():
    shown = bakeoff("--help", "all")
    assert shown.returncode == 0, shown.stderr
    words = " ".join(shown.stdout.split())
    for name, _, _, _, meaning in every_key():
        assert f"{name.strip('`')}=" in words
        assert " ".join(meaning.split()) in words
    some = bakeoff("--help", "group_size").stdout
    assert "batch.group_size=" in some
    assert "batch.prompts" not in some
    assert "bakeoff --help all" in bakeoff("--help", "nonsense").stdout


def test_help_lists_the_choices_of_the_users_folder(tmp_path):
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "my_task.yaml").write_text("defaults: [sort]\n")
    assert "my_task" in bakeoff("--help", "task", "--config-dir", str(tmp_path)).stdout


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert bakeoff("--version").stdout == f"bakeoff {version('bakeoff')}\n"


def test_completion_imports_no_torch_and_knows_groups_keys_and_studies():
    def completed(line: str) -> set[str]:
        shown = bakeoff("-sc", "query=bash", python="-X importtime", COMP_LINE=line, COMP_POINT=str(len(line)))
        assert "torch.nn" not in shown.stderr
        return set(shown.stdout.split())

    assert {"algorithm=grpo", "algorithm=grpo_process"} <= completed("bakeoff algorithm=gr")
    assert {"algorithm/objective=clip", "algorithm/objective=clip_higher"} <= completed(
        "bakeoff algorithm/objective=cl"
    )
    assert "batch.group_size=" in completed("bakeoff batch.gr")
    assert "sweeps=methods" in completed("bakeoff sweeps=me")


EARLY = """
import contextlib, io, sys
from bakeoff import early
for line in sys.stdin:
    command, module, *arguments = line.split()
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = early.refusal(command, module, arguments)
    print(code, " ".join(said.getvalue().split()))
"""
MISTAKES = {
    "bakeoff bakeoff.command algorithm=grop": "did you mean algorithm=grpo?",
    "bakeoff bakeoff.command algorithm=grpo -m seed=1,2 batch.prompts=0": "batch.prompts is 0",
    "bakeoff bakeoff.command -m algorithm=ppo,grop": "unknown choice algorithm=grop",
    "bakeoff bakeoff.command --cofnig-dir=x": "did you mean --config-dir?",
    "bakeoff-tune bakeoff.tune algorithm=ppo,grpo --rats 1e-3": "unknown option --rats; did you mean --rates?",
    "bakeoff-tune bakeoff.tune algorithm=ppo,gppo task=sort --rates 1e-3": "unknown choice algorithm=gppo",
    "bakeoff-predict bakeoff.predict_command algorithm=ppo,grop": "bakeoff-predict: unknown choice algorithm=grop",
    "bakeoff-evaluate bakeoff.evaluate outputs/x --sampels=3": "did you mean --samples?",
    "bakeoff-report bakeoff.report.__main__ --latset": "unknown option --latset; did you mean --latest?",
    "bakeoff-predict bakeoff.predict_command --largest sweeps=memory": "--largest needs configurations side by side",
    "bakeoff-report bakeoff.report.__main__ methods --latest": "methods and --latest exclude each other",
    "bakeoff-report bakeoff.report.__main__ --sweeps=3": "--sweeps needs a study",
    "bakeoff-report bakeoff.report.__main__ --where=seed<3": "--where needs a study",
    "bakeoff-report bakeoff.report.__main__ --detect=0.01": "--detect needs a study",
    "bakeoff-report bakeoff.report.__main__ methods --detect=3": "--detect is 3; it takes one study",
    "bakeoff-report bakeoff.report.__main__ --all --sweeps=2": "--sweeps is 2, which needs one study, but --all",
    "bakeoff-report bakeoff.report.__main__ claims --where=seed<3": "a claim is about all runs of a study",
    "bakeoff-reward-model bakeoff.reward_model preferences.pair=3": "did you mean preferences.pairs?",
}
RIGHT = [
    "bakeoff bakeoff.command algorithm=grpo seed=3 reward.functions={./mine.py:f:0.1}",
    "bakeoff bakeoff.command sweeps=arena seed=1",
    "bakeoff bakeoff.command -m sweeps=tuning",
    "bakeoff bakeoff.command --cfg job algorithm=ppo",
    "bakeoff-tune bakeoff.tune --rates 1e-3,1e-4 algorithm=ppo,trpo task=sort --base sort_tiny",
    "bakeoff-predict bakeoff.predict_command --fits 80 arm=grpo_lora,ppo_lora micro_tokens=4096",
    "bakeoff-evaluate bakeoff.evaluate outputs/x --samples=3 task.extract=whole",
]


def test_a_mistake_is_refused_before_torch_is_there_and_what_is_right_is_not():
    lines = "\n".join([*MISTAKES, *RIGHT])
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", EARLY], input=lines, capture_output=True, text=True
    )
    answers = shown.stdout.splitlines()
    assert len(answers) == len(MISTAKES) + len(RIGHT), shown.stderr[-2000:]
    for (line, words), answer in zip(MISTAKES.items(), answers, strict=False):
        assert answer.startswith("2 "), (line, answer)
        assert words in answer, (line, answer)
    assert [answer for answer in answers[len(MISTAKES) :] if answer != "0 "] == []
    assert "torch._tensor" not in shown.stderr, "the real one imports it; a stand-in has what is asked for alone"


def test_a_command_that_is_refused_early_ends_with_one_sentence():
    shown = bakeoff("algorithm=grop")
    assert shown.returncode == 2
    (sentence,) = shown.stderr.splitlines()
    assert sentence.endswith("did you mean algorithm=grpo?")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_word_of_a_table_is_cut(width):
    words = ["reinforce_pp_baseline", "0.94 [0.81, 0.99]", "−0.003 [−0.017, +0.012]: equivalent (within ±0.02)", "1 MB"]
    names = ["method", "held-out accuracy, greedy [95 %]", "against grpo, greedy", "training time", "peak memory"]
    table = plain_table("PPO or [red]GRPO[/]?", names[:1], names[1:])
    table.add_row(*words, words[1])
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    text = console.export_text()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert set(" ".join([*names, *words]).split()) <= set(text.split())
    assert "[red]" in text
    assert text.count("reinforce_pp_baseline") == text.count("method"), "each part names its rows"


def test_a_run_shows_itself_on_a_terminal_and_an_interrupt_names_the_command_that_resumes_it(tmp_path):
    store_of(tmp_path)
    endless = [each for each in SHORT if not each.startswith(("budget", "checkpoint"))]
    arguments = ["algorithm=grpo", *endless, "tracking.show_completion=true", "hydra.run.dir=out"]
    code, shown = on_a_terminal(*arguments, cwd=tmp_path, until="grpo seed 0")
    assert code == 130
    assert "loading torch" in shown
    assert HEAD in shown
    assert "grpo seed 0" in shown
    assert "Traceback" not in shown
    folder = shown.partition("bakeoff resume=")[2].split()[0]
    assert Path(folder) == tmp_path / "out"
    resumed = call("bakeoff.__main__", (f"resume={folder}", "budget={unit: updates, limit: 2}"), tmp_path)
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.parametrize("text", ["f raised ValueError: [/INST] (f.py:3)", "stop is [a, b]", "[bold]", r"a\[b]", "[/]"])
def test_what_a_message_quotes_is_never_markup(text, tmp_path, capsys):
    progress = RunProgress(tmp_path, text, quiet=False, console=Console(width=80))
    progress.report(text)
    progress.show(text)
    progress.show(plain_table(text, ("",)))
    shown = capsys.readouterr().out
    assert shown.count(text) == 3
    names, folders = [text], [tmp_path]
    progress.end("done")
    with watching(names, folders, Console(width=80)):
        pass
    assert text in capsys.readouterr().out


def test_an_interrupt_while_libraries_load_prints_no_traceback(tmp_path):
    code, shown = on_a_terminal("algorithm=grpo", cwd=tmp_path, until="loading torch")
    assert code == 130
    assert "bakeoff: interrupted." in shown
    assert "Traceback" not in shown


def test_lines_of_a_run_and_its_completion_fit_80_columns(tmp_path, capsys):
    progress = RunProgress(tmp_path, "grpo seed 1", quiet=False, console=Console(width=80))
    progress.begin(0, 0.0)
    progress.step(
        Standing(99_999, 1.0, -12.345, 0.123, 9_999_999.0, 123.45, 0.999, 123_456.0, "why?\n\x1b[2J" + "x" * 999)
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == HEAD
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 10, "a long completion is cut"
    assert "\x1b[2J" not in "".join(lines), "a completion does not steer the terminal"


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("jobs", [3, 60])
def test_a_sweep_of_any_size_fits_the_screen_and_each_job_keeps_number_arm_and_seed(jobs, width, capsys):
    values = {"state": "running", "share": 0.5, "reward": 0.5, "held_out": 0.5, "kl": 12.0}
    values |= {"tokens_per_second": 12_345.0, "memory_mb": 12_345.0, "left": 4000.0}
    name = "reinforce_pp seed 1 prompts=4 group_size=4 lr=0.00123 limit=100000"
    rows = [Row(str(n), name, values if n < 3 else None) for n in range(jobs)]
    rows[2].report = {"state": "killed"}
    Console(width=width).print(sweep_table(rows, 10.0, 0, width, 24))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert len(lines) <= 24
    shown = [line for line in lines if "reinforce_pp seed 1" in line]
    assert len(shown) == min(jobs, 19)
    assert all(line.split()[0] == str(n) for n, line in enumerate(shown))
    assert "12,345" in shown[0]
    assert f"0 of {jobs} jobs done, 2 running, 1 killed" in lines[0]


LAUNCHER = """
from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher


class Absent(Launcher):
    def setup(self, **given): ...

    def launch(self, overrides, initial_job_idx):
        raise RuntimeError("Could not detect srun, are you indeed on a slurm cluster?\\nmore\\nlines")


ConfigStore.instance().store(group="hydra/launcher", name="absent", node={"_target_": "hydra_plugins.absent.Absent"})
"""


def test_a_launcher_that_starts_nothing_says_why(tmp_path):
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "absent.py").write_text(LAUNCHER)
    store_of(tmp_path)
    ran = subprocess.run(
        [sys.executable, "-m", "bakeoff", "-m", "algorithm=grpo,rloo", "hydra/launcher=absent", *SHORT],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    (sentence,) = ran.stderr.strip().splitlines()
    assert sentence.startswith("bakeoff: hydra/launcher is absent, which started no job: Could not detect srun")
    assert sentence.endswith("hydra/launcher=joblib")


def test_the_actor_is_registered_and_datasets_are_logged_where_they_are_asked_for(command, tmp_path):
    from transformers import AutoModelForCausalLM

    ran = command("algorithm=grpo", *SHORT, "tracking.register_model=sorter", "tracking.system_metrics=true")
    assert ran.returncode == 0, ran.stderr
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs(["1"])
    assert f"/#/experiments/1/runs/{run.info.run_id}?workflowType=machine_learning" in ran.stdout
    assert len(run.info.run_name) <= 48
    contexts = {(each.dataset.name, each.tags[0].value) for each in run.inputs.dataset_inputs}
    assert contexts == {("sort training", "training"), ("sort evaluation", "evaluation")}
    (version,) = client.search_model_versions("name = 'sorter'")
    assert version.run_id == run.info.run_id
    AutoModelForCausalLM.from_pretrained(client.download_artifacts(run.info.run_id, "actor"))
    refused = command("algorithm=grpo", "tracking.register_model=sorter", "checkpoint.actor=false")
    assert "checkpoint.actor is false, but tracking.register_model needs the finished actor" in refused.stderr
    refused = command("algorithm=grpo", "tracking.register_model=my/sorter")
    assert refused.returncode == 2
    assert "tracking.register_model is 'my/sorter'" in refused.stderr


def test_curves_by_arm_have_an_address(tmp_path):
    store_of(tmp_path)
    tracker = start_run(tracking(tmp_path), "sweep", {}, tmp_path)
    address = tracker.charts()
    key = address.partition("viewStateShareKey=")[2].partition("&")[0]
    (tag,) = [
        value
        for name, value in tracker.client.get_experiment(tracker.experiment).tags.items()
        if name == f"mlflow.sharedViewState.{key}"
    ]
    assert tracker.run_id in tag
    assert '"groupByData": "arm"' in tag


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_make_installs_nothing_into_the_environment_of_another_checkout(tmp_path):
    """And everything into an environment that is new or of this checkout."""

    def steps(target: str, owner: str) -> str:
        about = tmp_path / "lib" / "python3.12" / "site-packages" / "bakeoff-0.1.0.dist-info"
        about.mkdir(parents=True, exist_ok=True)
        (about / "direct_url.json").write_text(f'{{"dir_info": {{"editable": true}}, "url": "file://{owner}"}}')
        return subprocess.run(
            ["make", "-n", target, f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True
        ).stdout

    for target in ("lint", "test", "docs"):
        assert "pip install" not in steps(target, "/another/checkout")
        assert f"{tmp_path}/bin/pip install" in steps(target, str(ROOT))
    assert str(tmp_path) not in steps("clean", "/another/checkout").split()
