"""Pods on this machine: processes with a network, an address, processes and files of their own, as Kubernetes gives.

Everything lies in the Linux namespaces of the process that makes them: when it ends, however it does, nothing is left
of bridge, addresses, mounts or processes. A pod is killed as a node is: all of its processes at once, without a word.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["FIRST_POD", "Pod", "PodNetwork"]

_BRIDGE: Final = "pods0"
_SUBNET: Final = "10.77.0."
_FIRST: Final = 10
FIRST_POD: Final = f"{_SUBNET}{_FIRST}"
"""The address of the first pod that is started."""
_SETUP: Final = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs {scratch}
mkdir {scratch}/upper {scratch}/work {scratch}/tmp-ray {scratch}/home
mount -t overlay overlay -o lowerdir=/etc,upperdir={scratch}/upper,workdir={scratch}/work /etc
mount -t tmpfs tmpfs /run
mkdir -p /tmp/ray
mount --bind {scratch}/tmp-ray /tmp/ray
hostname {name}
cp {hosts} /etc/hosts
echo "{address} {name}" >> /etc/hosts
: > /etc/resolv.conf
cp -r --no-target-directory {files} /
until ip -brief address show eth0 2>/dev/null | grep -q {address}; do sleep 0.02; done
export HOME={scratch}/home
exec /bin/bash -c "$POD_COMMAND"
"""


@dataclass
class Pod:
    """One of them, running."""

    name: str
    address: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def init(self) -> int:
        """Its first process, as seen from outside."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def run(self, command: str, *, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        """A command in a shell inside of it, as a probe is."""
        enter = ["nsenter", f"--target={self.init}", "--net", "--mount", "--pid", "bash", "-c", command]
        return subprocess.run(enter, capture_output=True, text=True, timeout=timeout_s, check=False)

    def resolve(self, name: str, address: str) -> None:
        """Have a name lead to another address from now on, as a name server would."""
        others = f"grep -v ' {name}$' /etc/hosts > /etc/hosts.next; cat /etc/hosts.next > /etc/hosts"
        self.run(f"{others}; printf '{_line(name, address)}' >> /etc/hosts")

    def terminate(self) -> None:
        """Tell it to end, as a deletion does: its first process has to see to the others."""
        os.kill(self.init, signal.SIGTERM)

    def kill(self) -> None:
        """End all of its processes at once; the kernel does so when the first of them is killed."""
        os.kill(self.init, signal.SIGKILL)
        self.process.wait(20)


class PodNetwork:
    """A bridge in the network namespace that this process is alone in, and the pods on it.

    Args:
        folder: for logs and for what pods write.
        names: what Services are called, with the address of each.
    """

    def __init__(self, folder: Path, names: dict[str, str]) -> None:
        self.folder, self.names = folder, names
        self.pods: list[Pod] = []
        self._next = _FIRST
        _ip("link", "set", "lo", "up")
        _ip("link", "add", _BRIDGE, "type", "bridge")
        for number in (1, *(int(address.rpartition(".")[2]) for address in names.values())):
            if number < _FIRST:
                _ip("address", "add", f"{_SUBNET}{number}/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")
        self.hosts = folder / "hosts"
        self.hosts.write_text("".join(_line(*named) for named in [("localhost", "127.0.0.1"), *names.items()]))

    @staticmethod
    def service_address(number: int) -> str:
        """An address for a server that runs beside the pods; from 2 to 9."""
        return f"{_SUBNET}{number}"

    def start(
        self,
        name: str,
        command: str,
        variables: dict[str, str],
        files: dict[str, str],
        names: dict[str, str] | None = None,
    ) -> Pod:
        """A pod that runs a command in a shell, with files where its containers would have mounted them.

        It knows the network's names, and those given here with their addresses.
        """
        address, self._next = f"{_SUBNET}{self._next}", self._next + 1
        own = self.folder / name
        (own / "scratch").mkdir(parents=True)
        (own / "files").mkdir()
        for path, content in files.items():
            file = own / "files" / path.removeprefix("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        hosts = own / "hosts"
        hosts.write_text(self.hosts.read_text() + "".join(_line(*named) for named in (names or {}).items()))
        script = _SETUP.format(name=name, address=address, scratch=own / "scratch", hosts=hosts, files=own / "files")
        log = own / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    "unshare",
                    "--net",
                    "--mount",
                    "--pid",
                    "--ipc",
                    "--uts",
                    "--fork",
                    "--kill-child",
                    "--mount-proc",
                    "bash",
                    "-c",
                    script,
                ],
                env={**variables, "POD_COMMAND": command},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        pod = Pod(name, address, process, log)
        self.pods.append(pod)
        self._connect(pod, f"pod{self._next}")
        return pod

    def _connect(self, pod: Pod, device: str) -> None:
        deadline = time.monotonic() + 10
        while not pod.init:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{pod.name} did not start: {pod.log.read_text()}")
            time.sleep(0.01)
        _ip("link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", str(pod.init))
        _ip("link", "set", device, "master", _BRIDGE, "up")
        inside = ["nsenter", f"--target={pod.init}", "--net"]
        for words in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{pod.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", f"{_SUBNET}1"),
        ):
            subprocess.run([*inside, "ip", *words], check=True)


def _line(name: str, address: str) -> str:
    return f"{address} {name}\n"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
