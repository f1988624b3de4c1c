"""Measures a running inference server from a client's side. Definitions of every figure: `provision.bench.stats`."""
