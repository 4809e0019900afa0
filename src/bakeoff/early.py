"""A mistake in a command line is reported in about a second, while the libraries of the command still load.

A second process reads the command line meanwhile. It imports stand-ins for those libraries, so it knows the names,
types and ranges of all keys, and composes the configuration as the command will. Which values go together, the command
checks.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from importlib import import_module

from bakeoff.signals import shielding
from bakeoff.standin import HEAVY, StandIn, stand_in

MISTAKE = 2  # exit code of a command for a user's mistake
SECONDS = 3.0  # of computing, after which the command itself checks the other jobs of a large sweep


def reading(command: str, module: str, arguments: list[str]) -> Callable[[], None]:
    """Starts the process, which calls `check` of the command's module; returns a function that waits for its end.

    A mistake ends this process too, with exit code 2. Modules of the user's may be no use with stand-ins: where
    $BAKEOFF_IMPORT names some, nothing is read early, and nothing where the libraries are here already.
    """
    here = HEAVY & set(sys.modules) or any(isinstance(each, StandIn) for each in sys.meta_path)
    if here or os.environ.get("BAKEOFF_IMPORT"):
        return lambda: None
    with shielding():  # Python would print what interrupts a fork
        process = os.fork()
        if process == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends in silence: the command says that it was interrupted
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            os._exit(refusal(command, module, arguments))

    def wait() -> None:
        if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == MISTAKE:
            os._exit(MISTAKE)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    return waiting.join


def refusal(command: str, module: str, arguments: list[str]) -> int:
    """Prints the sentence on a mistake; returns the exit code, 0 where there is none, or none that stand-ins show."""
    try:
        warnings.simplefilter("ignore")
        stand_in()
        from bakeoff.errors import UserError, fail, refused

        try:
            with refused():
                import_module(module).check(arguments)
        except UserError as error:
            fail(error, command)
    except SystemExit as ended:
        sys.stderr.flush()
        return MISTAKE if ended.code == MISTAKE else 0
    except BaseException:  # the command meets it too
        return 0
    return 0


def check_overrides(overrides: list[str], config_dir: str | None = None, sweep: bool = False) -> None:
    """Raises UserError for a name, a type or a range that the schemas refuse, in a run or in the jobs of a sweep."""
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import open_dict

    from bakeoff.arms import check_files, jobs_of
    from bakeoff.config import register
    from bakeoff.errors import UserError
    from bakeoff.paths import CONF
    from bakeoff.validation import faults

    register()
    began = time.process_time()
    path = create_config_search_path(str(CONF))
    if config_dir:
        path.prepend("command-line", f"file://{os.path.abspath(config_dir)}", SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    loader = Hydra.create_main_hydra2("bakeoff", path).config_loader
    whole = loader.load_configuration("config", overrides, RunMode.MULTIRUN)
    jobs = [overrides]
    if sweep or whole.hydra.mode is RunMode.MULTIRUN:
        jobs = [job.overrides for job in jobs_of(whole, list(whole.hydra.overrides.task), loader)]
    for job in dict.fromkeys(tuple(each for each in job if not each.startswith("seed=")) for job in jobs):
        config = loader.load_configuration("config", list(job), RunMode.RUN)
        check_files(job, loader)
        with open_dict(config):
            del config["hydra"]
        for sentence in faults(config):
            raise UserError(sentence)
        if time.process_time() - began > SECONDS:
            return
