"""A private link between this machine (the controller) and one lab host: a network namespace and a veth pair."""

from __future__ import annotations

import ipaddress
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.lab.cache import locked

# Every link is a /30 of its own, so hosts see the controller and nothing else; there is no default route.
_POOL = ipaddress.IPv4Network("10.213.0.0/16")
_LOCK = Path("/run/provision-lab-network.lock")
_GUEST_INTERFACE = "eth0"


@dataclass(frozen=True, slots=True)
class Link:
    """Names and addresses of one link; `namespace` is where the host's end lives."""

    namespace: str
    interface: str
    controller_address: str
    host_address: str

    def set_up(self, up: bool) -> None:
        """Pull or plug in the cable: packets then vanish without a word, as with a host that lost power."""
        _ip("-n", self.namespace, "link", "set", _GUEST_INTERFACE, "up" if up else "down")

    def process_ids(self) -> list[int]:
        """Processes of this machine that run in the host's namespace, seen from outside."""
        return namespace_process_ids(self.namespace)


def names_of(lab_id: str) -> tuple[str, str]:
    """Namespace and controller-side interface of a lab host; the kernel allows 15 characters for the latter."""
    return f"provision-lab-{lab_id}", f"pvl{lab_id}"


def open_link(lab_id: str) -> Link:
    """Make the namespace and the veth pair and give both ends addresses of a free /30."""
    namespace, interface = names_of(lab_id)
    _ip("netns", "add", namespace)
    _ip("link", "add", interface, "type", "veth", "peer", "name", _GUEST_INTERFACE, "netns", namespace)
    with locked(_LOCK):
        subnet = _free_subnet()
        controller, host = (str(address) for address in subnet.hosts())
        _ip("address", "add", f"{controller}/30", "dev", interface)
    _ip("-n", namespace, "address", "add", f"{host}/30", "dev", _GUEST_INTERFACE)
    _ip("-n", namespace, "link", "set", "lo", "up")
    link = Link(namespace, interface, controller, host)
    link.set_up(True)
    _ip("link", "set", interface, "up")
    return link


def close_link(lab_id: str) -> None:
    """Delete what `open_link` made, as far as it is there; processes in the namespace must be gone."""
    namespace, interface = names_of(lab_id)
    # The kernel frees a namespace lazily; deleting our end first frees the subnet at once.
    subprocess.run(["ip", "link", "delete", interface], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)


def namespace_process_ids(namespace: str) -> list[int]:
    """Processes in a named network namespace; none when it does not exist."""
    listing = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return [int(line) for line in listing.stdout.split()]


def _free_subnet() -> ipaddress.IPv4Network:
    taken = [
        ipaddress.IPv4Network(f"{entry['local']}/{entry['prefixlen']}", strict=False)
        for interface in json.loads(_ip("-json", "-4", "address", "show"))
        for entry in interface["addr_info"]
    ]
    for subnet in _POOL.subnets(new_prefix=30):
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise RuntimeError(f"no free /30 in {_POOL}: run `python -m tests.lab.clean`")


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
