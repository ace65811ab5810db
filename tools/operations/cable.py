"""A network of its own for a process, on a cable that can be cut (Linux, as root)."""

import contextlib
import os
import shutil
import subprocess

NETWORK = "10.213.77"
HERE = f"{NETWORK}.1"


def can_be_laid() -> bool:
    return os.geteuid() == 0 and shutil.which("ip") is not None


class Cable:
    """Here is `HERE`; whoever is started with `command` before it reaches that, and nothing else."""

    def __init__(self):
        self.name = f"cable{os.getpid()}"
        # Names of devices have fifteen letters at most.
        self.end, self.other = (f"c{os.getpid()}{side}" for side in "ab")
        self.command = ["ip", "netns", "exec", self.name]

    def __enter__(self):
        try:
            self.ip("netns", "add", self.name)
            self.ip("link", "add", self.end, "type", "veth", "peer", "name", self.other, "netns", self.name)
            self.ip("address", "add", f"{HERE}/30", "dev", self.end)
            self.ip("link", "set", self.end, "up")
            self.ip("-n", self.name, "address", "add", f"{NETWORK}.2/30", "dev", self.other)
            self.ip("-n", self.name, "link", "set", self.other, "up")
            self.ip("-n", self.name, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        with contextlib.suppress(subprocess.CalledProcessError):
            self.ip("link", "delete", self.end)
        with contextlib.suppress(subprocess.CalledProcessError):
            self.ip("netns", "delete", self.name)

    def cut(self):
        self.ip("link", "set", self.end, "down")

    def mend(self):
        self.ip("link", "set", self.end, "up")

    def ip(self, *arguments):
        subprocess.run(["ip", *arguments], check=True, capture_output=True)
