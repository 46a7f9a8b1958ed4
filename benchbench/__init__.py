"""benchbench: benchmarks of LLM inference servers that can be trusted."""

__version__ = "0.1.0"
