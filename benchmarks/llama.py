"""What a graph of a decoder of transformers costs: tiny Llamas beside Torch-Pruning, and one of eight billion weights.

    pip install -r benchmarks/requirements.txt
    python benchmarks/llama.py [--layers 8,16,32] [--turns 3] [--no-large]

CPU seconds on one thread. The large network has its true sizes and lies on the device `meta`, without weights.
"""

from __future__ import annotations

import argparse
import copy
import gc
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pruning import DependencyGraph  # noqa: E402 - the path has to be set first

TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 100,
}
# The published configuration of Llama 3.1 8B.
LARGE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
TOKENS = 16


def llama(**sizes: int) -> nn.Module:
    """Returns a Llama with fresh weights, without its cache."""
    transformers = import_module("transformers")
    config = transformers.AutoConfig.for_model("llama", use_cache=False, **sizes)
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    return model.eval()


def seconds(action: Callable[..., Any], *given: Any) -> float:
    """Returns the CPU seconds that an action takes."""
    gc.collect()
    start = time.process_time()
    action(*given)
    return time.process_time() - start


def theirs(model: nn.Module, ids: torch.Tensor) -> None:
    """Builds Torch-Pruning's graph."""
    graph = import_module("torch_pruning").DependencyGraph()
    graph.build_dependency(model, example_inputs=ids, output_transform=lambda output: output.logits)


def tiny(layers: list[int], turns: int) -> None:
    """Prints what a graph takes by the number of layers."""
    print(f"{'layers':>6}{'ours':>10}{'per layer':>12}{'plan':>10}{'theirs':>10}{'ratio':>8}")
    for count in layers:
        model = llama(num_hidden_layers=count, **TINY)
        ids = torch.randint(0, TINY["vocab_size"], (1, TOKENS))
        own, plans, other = [], [], []
        for _ in range(turns):
            copied = copy.deepcopy(model)
            own.append(seconds(DependencyGraph, copied, {"input_ids": ids}))
            graph = DependencyGraph(copied, {"input_ids": ids})
            plans.append(seconds(graph.plan, range(0, len(graph.nodes), 4)))
            other.append(seconds(theirs, copy.deepcopy(model), ids))
        graph_time, plan_time, other_time = map(statistics.median, (own, plans, other))
        ratio = statistics.median(one / two for one, two in zip(own, other, strict=True))
        print(f"{count:>6}{graph_time:>9.3f}s{graph_time / count:>11.4f}s{plan_time:>9.3f}s{other_time:>9.3f}s"
              f"{ratio:>8.2f}", flush=True)  # fmt: skip


def large() -> None:
    """Prints what graph and plan of a quarter of all nodes take where weights would need 16 GB."""
    with torch.device("meta"):
        model = llama(**LARGE)
    ids = torch.randint(0, 1000, (1, TOKENS))
    before = _peak_gigabytes()
    start = time.process_time()
    graph = DependencyGraph(model, {"input_ids": ids})
    built = time.process_time()
    plan = graph.plan(range(0, len(graph.nodes), 4))
    planned = time.process_time()
    total = sum(parameter.numel() for parameter in model.parameters())
    print(f"Llama 3.1 8B on meta: {total:,} parameters, {len(graph.nodes):,} nodes")
    print(f"graph {built - start:.1f} s, plan of a quarter {planned - built:.1f} s (aim: 20 s in all)")
    print(f"{plan.parameters_removed:,} parameters would go")
    print(f"peak memory {_peak_gigabytes():.2f} GB, {before:.2f} of it before the graph (aim: 2 GB)")


def _peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # Linux counts kilobytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="8,16,32")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--no-large", action="store_true")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    tiny([int(count) for count in given.layers.split(",")], given.turns)
    if not given.no_large:
        large()


if __name__ == "__main__":
    main()
