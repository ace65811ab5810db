"""A network of its own for a process, on a cable that can be cut (Linux, as root)."""

import contextlib
import os
import subprocess

NETWORK = "10.213.77"
HERE = f"{NETWORK}.1"


@contextlib.contextmanager
def laid():
    """One, or None where that is not allowed: not root, a container without the right to, or no `ip`."""
    with contextlib.ExitStack() as stack:
        try:
            cable = stack.enter_context(Cable())
        except (OSError, subprocess.CalledProcessError):
            cable = None
        yield cable


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
            subprocess.run([*self.command, "true"], check=True, capture_output=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for what in (("link", "delete", self.end), ("netns", "delete", self.name)):
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                self.ip(*what)

    def cut(self):
        self.ip("link", "set", self.end, "down")

    def mend(self):
        self.ip("link", "set", self.end, "up")

    def ip(self, *arguments):
        subprocess.run(["ip", *arguments], check=True, capture_output=True)
