"""Parameters, FLOPs, bytes and latency; accuracy; confusion."""
