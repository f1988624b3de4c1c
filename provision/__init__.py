"""Size, provision and benchmark local LLM servers."""

__version__ = "0.1.0"
