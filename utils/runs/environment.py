"""What a run ran on: device, hardware, versions, commit."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pruning import distributed
from pruning.errors import UsageError
from utils import processes
from utils.settings.registry import ROOT

PACKAGES = ["torch", "torchvision", "numpy", "scipy", "scikit-learn", "timm"]


def pick_device(name: str) -> torch.device:
    """Returns the device for a name; "auto" takes cuda, then mps, then the CPU.

    Raises:
        UsageError: if the device asked for is not there.
    """
    usable = ["cpu"]
    if torch.cuda.is_available():
        usable.append("cuda")
    if torch.backends.mps.is_available():
        usable.append("mps")
    if name == "auto":
        # The first accelerator that is there.
        name = (usable[1:] or usable)[0]
    if name not in usable:
        known = ", ".join(usable)
        raise UsageError(f"--device {name}: this machine or this torch has none. Usable here: {known}.")
    if name == "cuda" and processes.launched() > 1:
        torch.cuda.set_device(processes.local_gpu())
        return torch.device("cuda", processes.local_gpu())
    return torch.device(name)


def describe(device: torch.device) -> dict[str, Any]:
    """Returns git commit, package versions, hardware and thread count, for result.json."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    hardware = {"device": str(device), "gpu": gpu, "cpu": _cpu_name(), "cpu_count": os.cpu_count()}
    return {
        "git_commit": _git_commit(),
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "processes": distributed.world(),
    }


def forget_peak_memory(device: torch.device) -> None:
    """Lets the peak be measured from now on: one process may do many runs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # 5 sets the peak back to what is held now


def peak_memory_bytes(device: torch.device) -> int:
    """Returns the most memory held so far: of the GPU where one is used, else of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with contextlib.suppress(OSError, StopIteration):
        # On Linux, since getrusage also knows the peak of the process that started this one.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM"))
        kibibytes = int(peak.split()[1])
        return 1024 * kibibytes
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cpu_name() -> str:
    """The processor's model; on Linux only the kernel's table knows more than its architecture."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None  # a copy without its history
    return done.stdout.strip() or None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        # What is not installed was not used.
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
