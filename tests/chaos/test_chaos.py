"""A few attacks of `make chaos`."""

from functools import partial
from random import Random

import pytest

from tests.chaos import damage, disk, kills
from tests.chaos.__main__ import SECTIONS, parsed
from tests.chaos.trials import Attack, tried, undisturbed_run

pytestmark = pytest.mark.xdist_group("chaos")  # one worker, so that the undisturbed run is shared


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chaos")


def lost(attacks, number):
    """What does not survive, of a fixed choice of attacks."""
    trials = tried(attacks, Random("suite"), number / len(attacks))
    return [trial for trial in trials if trial.fault]


def test_the_command_tries_every_section_or_those_that_are_named():
    assert parsed([]).sections == [*SECTIONS]
    assert parsed(["disk", "fuzz", "--scale", "0.1"]).sections == ["disk", "fuzz"]
    with pytest.raises(SystemExit):
        parsed(["disc"])


def test_a_run_that_is_killed_repeats_its_curves(folder):
    files = [attack for attack in kills.attacks(folder, Random("suite"), sweeps=0) if "file" in attack.kind]
    assert lost(files, 1) == []


def test_a_run_whose_files_are_damaged_repeats_its_curves_or_is_refused(folder):
    assert lost(damage.attacks(folder, Random("suite")), 2) == []


def test_a_run_whose_disk_is_full_is_one_sentence_and_resumes(folder):
    full = partial(disk.small_files, folder / "full", "every file", undisturbed_run(folder), 500_000)
    assert lost([Attack("disk", "", full)], 1) == []
