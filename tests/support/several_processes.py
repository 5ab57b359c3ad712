"""Started by torchrun (or alone): runs command lines one after the other and leaves what each process comes to.

several_processes.py FILE    FILE holds a list of command lines (JSON); out come <line>_<process>.pt beside it
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed

import main
from trainers.DefaultTrainer import DefaultTrainer


def run_all(file: Path) -> None:
    """Runs every line of the file; of each process the network, masks and learned numbers are left in a file."""
    process = os.environ.get("RANK", "alone")
    if process != "alone":
        torch.distributed.init_process_group("gloo")  # one for all lines
    trainers = []
    train = DefaultTrainer.train
    DefaultTrainer.train = lambda trainer: (trainers.append(trainer), train(trainer))[1]
    for number, argv in enumerate(json.loads(file.read_text(encoding="utf-8"))):
        trainers.clear()
        code = main.main(argv)
        assert code == 0 and len(trainers) == 1, f"{argv} ended with {code}"
        (trainer,) = trainers
        network = trainer.network
        left = {"state": network.model.state_dict(), "masks": dict(network.masks.keep), "metrics": trainer.metrics}
        torch.save(left | {"totals": trainer.totals}, file.with_name(f"{number}_{process}.pt"))


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))
