"""The table of commands: one name, one file beside this one, one line of help.

`provision --help` is printed from this table alone, so that it costs no import of typer or of any command.
"""

COMMANDS: dict[str, str] = {
    "quickstart": "The whole loop on this machine: detect, plan, serve, bench, compare.",
    "detect": "What is in this machine, or in other hosts over SSH.",
    "plan": "Which models run on this hardware, how fast, and why the rest do not; writes a plan file.",
    "estimate": "One model on one device layout, itemised to the buffer.",
    "apply": "Carry a plan out on hosts: install the engine, configure it, pull the models.",
    "verify": "Is what runs on a host what was planned?",
    "remove": "Take off a host what apply put there, exactly.",
    "bench": "Throughput and latency of an endpoint, against prediction and ceiling.",
    "catalog": "Models, hardware and claims that provision knows, each number with its source.",
    "completion": "Print the script that completes provision's commands in your shell.",
}
