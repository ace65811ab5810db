#!/usr/bin/env python3
"""Runs a Dockerfile's build as plain commands, in a folder of its own.

    deploy/container/build_without_docker.py Dockerfile [--dry-run] [--into FOLDER] [--serve]

For machines without a container engine: what `COPY` would bring is copied from the files that
git tracks and .dockerignore lets in, `RUN` lines run in that copy, and the last stage's files are
laid out as the image would have them. `--serve` then starts the program out of them, asks it by
HEALTHCHECK's own command, and stops it by STOPSIGNAL.

Not the same as an image: the base images are this machine (a different rustc is named), caches
are this user's, and lines with apt-get are only run with --system. Paths below /build are mapped
into the folder; other absolute paths mean this machine's.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def instructions(text):
    """(word, arguments) of each instruction; comments are left out, lines that go on are joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    for line in joined.splitlines():
        if line.strip():
            word, _, arguments = line.strip().partition(" ")
            yield word.upper(), arguments.strip()


def split_flags(arguments):
    """({flag: value}, rest) of `--from=build /a /b`."""
    flags = {}
    while match := re.match(r"--([a-z-]+)=(\S+)\s+", arguments):
        flags.setdefault(match[1], match[2])
        arguments = arguments[match.end():]
    return flags, arguments


def context_files():
    """Tracked files that .dockerignore lets in. It may hold `*` and then `!PATH` only."""
    patterns = [
        line.strip() for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    if patterns[0] != "*" or not all(pattern.startswith("!") for pattern in patterns[1:]):
        sys.exit(".dockerignore: expected '*', then only lines that begin with '!'")
    paths = [pattern[1:] for pattern in patterns[1:]]
    for path in paths:
        if not (REPOSITORY / path).exists():
            sys.exit(f".dockerignore lets in {path}, which does not exist")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *paths], cwd=REPOSITORY, check=True, capture_output=True
    )
    return [name for name in listed.stdout.decode().split("\0") if name]


class Build:
    """What the instructions read so far have set."""

    def __init__(self, folder, dry_run, system):
        self.folder, self.dry_run, self.system = folder, dry_run, system
        self.stages = []
        self.steps = 0
        self.shell = ["/bin/sh", "-c"]
        self.variables = {}
        self.directory = Path("/")
        self.last = {}

    def root(self):
        """Where `/` of this stage lies. The first one's own is the folder, for /build."""
        return self.folder if len(self.stages) <= 1 else self.folder / self.stages[-1]

    def place(self, path):
        """A path of this stage, in the folder."""
        return self.root() / os.path.normpath(self.directory / path).lstrip("/")

    def tell(self, what):
        self.steps += 1
        print(f"[{self.stages[-1] if self.stages else '-'}] {what}", flush=True)

    def run(self, word, arguments):
        action = getattr(self, f"do_{word.lower()}", None)
        if action is None:
            sys.exit(f"{word}: not known here")
        action(arguments)

    def do_from(self, arguments):
        image, _, name = arguments.partition(" AS ")
        self.stages.append(name or f"stage{len(self.stages)}")
        self.variables, self.directory, self.last = {}, Path("/"), {}
        self.tell(f"FROM {image}: this machine stands for it")
        wanted = re.match(r"rust:(\d[\d.]*)", image)
        if wanted and not self.dry_run:
            have = subprocess.run(["rustc", "--version"], capture_output=True, text=True).stdout
            if wanted[1] not in have:
                print(f"    rustc here is another one: {have.strip()}")

    def do_shell(self, arguments):
        self.shell = json.loads(arguments)

    def do_workdir(self, arguments):
        self.directory = self.directory / arguments
        if not self.dry_run:
            self.place(".").mkdir(parents=True, exist_ok=True)

    def do_arg(self, arguments):
        name, _, value = arguments.partition("=")
        given = os.environ.get(f"BUILD_ARG_{name}")
        self.variables[name] = given if given is not None else "".join(shlex.split(value))

    def do_env(self, arguments):
        self.variables.update(pair.split("=", 1) for pair in shlex.split(arguments))

    def do_copy(self, arguments):
        flags, rest = split_flags(arguments)
        *sources, target = rest.split()
        self.tell(f"COPY {arguments}")
        if "from" in flags:
            if flags["from"] not in self.stages:
                sys.exit(f"COPY --from={flags['from']}: there is no such stage")
            pairs = [(self.folder / source.lstrip("/"), self.place(target)) for source in sources]
            if not self.dry_run:
                for source, destination in pairs:
                    shutil.copytree(source, destination, dirs_exist_ok=True, symlinks=True)
            return
        if sources != ["."]:
            sys.exit("COPY: only whole contexts ('COPY . .') are known here")
        files = context_files()
        print(f"    {len(files)} files")
        if not self.dry_run:
            for name in files:
                destination = self.place(target) / name
                destination.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / name, destination)

    def do_run(self, arguments):
        _, command = split_flags(arguments)
        self.tell(f"RUN {command}")
        if len(self.stages) > 1:
            sys.exit("RUN in the last stage: nothing there can run without an engine")
        if "apt-get" in command and not self.system:
            print("    left out: it changes this machine (--system runs it)")
            return
        if not self.dry_run:
            environment = os.environ | self.variables
            # The stage's target folder is its own, whatever the caller compiles into.
            environment.pop("CARGO_TARGET_DIR", None)
            subprocess.run([*self.shell, command], cwd=self.place("."), env=environment, check=True)

    def remember(self, word, arguments):
        self.last[word] = arguments

    def do_label(self, arguments):
        self.remember("LABEL", arguments)

    def do_user(self, arguments):
        self.remember("USER", arguments)

    def do_volume(self, arguments):
        self.remember("VOLUME", arguments)

    def do_expose(self, arguments):
        self.remember("EXPOSE", arguments)

    def do_stopsignal(self, arguments):
        self.remember("STOPSIGNAL", arguments)

    def do_healthcheck(self, arguments):
        self.remember("HEALTHCHECK", json.loads(arguments[arguments.index("["):]))

    def do_entrypoint(self, arguments):
        self.remember("ENTRYPOINT", json.loads(arguments))


def faults_of(build):
    """What an image of these instructions would lack."""
    expected = ("LABEL", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT")
    yield from (f"no {word}" for word in expected if word not in build.last)
    if build.last.get("USER", "0").split(":")[0] in ("0", "root"):
        yield "the program would run as root"
    if build.dry_run:
        return
    for word in ("ENTRYPOINT", "HEALTHCHECK"):
        program = build.root() / "usr/local/bin" / build.last[word][0]
        if not os.access(program, os.X_OK):
            yield f"{word}: {program} cannot be executed"


def describe(build):
    """Prints what is in the image beside its base, and which libraries it needs of that."""
    root = build.root()
    files = sorted((path.stat().st_size, path) for path in root.rglob("*") if path.is_file())
    for size, path in reversed(files):
        print(f"    {size / 1e6:9.2f} MB  /{path.relative_to(root)}")
    program = root / "usr/local/bin" / build.last["ENTRYPOINT"][0]
    print(subprocess.run(["ldd", program], capture_output=True, text=True).stdout.rstrip())
    subprocess.run([program, "--version"], check=True)


def serve(build):
    """Starts the program as the image would, asks for its health, and stops it."""
    root = build.root()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    variables = {
        name: str(root / value.lstrip("/")) if value.startswith("/") else value
        for name, value in build.variables.items()
    }
    binaries = root / "usr/local/bin"
    environment = {"PATH": f"{binaries}:/usr/bin:/bin", **variables, "DIFFUSER_PORT": port}
    command = [str(binaries / build.last["ENTRYPOINT"][0]), *build.last["ENTRYPOINT"][1:]]
    check = [str(binaries / build.last["HEALTHCHECK"][0]), *build.last["HEALTHCHECK"][1:]]
    state = root / "var/lib/diffuser-api"
    process = subprocess.Popen(command, env=environment, cwd=state)
    try:
        until = time.monotonic() + 60
        while subprocess.run(check, env=environment, stderr=subprocess.DEVNULL).returncode:
            if process.poll() is not None or time.monotonic() > until:
                sys.exit("the program did not become healthy")
            time.sleep(0.2)
        print(f"healthy on port {port}")
        process.send_signal(getattr(signal, build.last["STOPSIGNAL"]))
        if status := process.wait(timeout=60):
            sys.exit(f"{build.last['STOPSIGNAL']} ended it with status {status}")
        print("stopped")
    finally:
        if process.poll() is None:
            process.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dockerfile")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run")
    parser.add_argument("--into", type=Path, help="an empty folder; a temporary one without it")
    parser.add_argument("--system", action="store_true", help="run lines with apt-get, too")
    parser.add_argument("--serve", action="store_true", help="start what was built, and stop it")
    options = parser.parse_args()

    folder = options.into or Path(tempfile.mkdtemp(prefix="image-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        sys.exit(f"{folder} is not empty")
    build = Build(folder.resolve(), options.dry_run, options.system)
    for word, arguments in instructions((REPOSITORY / options.dockerfile).read_text()):
        build.run(word, arguments)
    faults = list(faults_of(build))
    if faults:
        sys.exit("\n".join(f"{options.dockerfile}: {fault}" for fault in faults))
    print(f"{options.dockerfile}: {build.steps} steps in {folder}")
    if options.dry_run:
        if not options.into:
            folder.rmdir()
        return
    describe(build)
    if options.serve:
        serve(build)


main()
