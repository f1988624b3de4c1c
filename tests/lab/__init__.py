"""A lab of real parts: booted Debian hosts, a real Ollama release, a model registry, and GPUs that are played by a stand-in.

It stands alone: nothing here imports the project under test. See README.md beside this file.
"""
