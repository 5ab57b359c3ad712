"""What can be asked of many runs at once, instead of one run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Asked:
    """The settings of commands about many runs.

    Args:
        experiment: YAML file that says what to compare; --workers is then the number of runs at a time.
        status: with --experiment, print what is finished, running, failed and left, and the time left.
        dry_run: with --experiment, print every run that the file stands for, and an estimate of the time.
        ray: with --experiment, make the runs on a Ray cluster: auto for the one that this machine belongs to, or
            HOST:PORT, or ray://HOST:PORT.
        report: make a report of the finished runs whose folders match this pattern.
    """

    experiment: str = ""
    status: bool = False
    dry_run: bool = False
    ray: str = ""
    report: str = ""
