"""PostgreSQL of this machine (Debian: `postgresql`), started over a folder of its own, killed and started again.

It does not run as root: then `nobody` runs it.
"""

import contextlib
import glob
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import client

START_LIMIT_S = 60


def programs() -> Path:
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[4]))
    if not found:
        raise SystemExit("there is no PostgreSQL here (Debian: apt-get install postgresql)")
    return Path(found[-1])


class Engine:
    """A database, with a folder beside it for the files of jobs."""

    def __init__(self, also: str | None = None):
        """`also`: an address of this machine at which the neighbours of its network find it, too."""
        self.also = also
        self.folder = Path(tempfile.mkdtemp(prefix="diffuser-engine-"))
        self.data, self.files = self.folder / "data", self.folder / "files"
        self.files.mkdir()
        self.port = client.free_port()
        self.programs = programs()
        self.as_user = []
        if os.geteuid() == 0:
            shutil.chown(self.folder, "nobody")
            self.folder.chmod(0o755)
            self.as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        self.log = open(self.folder / "log", "ab")
        self.run("initdb", "-D", self.data, "-A", "trust", "-U", "diffuser", "--no-sync")
        if also:
            with open(self.data / "pg_hba.conf", "a") as rules:
                rules.write(f"host all all {also}/30 trust\n")
        self.process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def url(self) -> str:
        return self.url_at("127.0.0.1")

    def url_at(self, address: str) -> str:
        return f"postgres://diffuser@{address}:{self.port}/postgres"

    @property
    def settings(self) -> dict:
        """Those of whoever shares these jobs."""
        return {"DIFFUSER_JOBS_STORE": self.url, "DIFFUSER_JOBS_FILES": f"file://{self.files}"}

    def version(self) -> str:
        return subprocess.run([self.programs / "postgres", "--version"], capture_output=True, text=True).stdout.strip()

    def run(self, program, *arguments):
        command = [*self.as_user, self.programs / program, *map(str, arguments)]
        subprocess.run(command, check=True, stdout=self.log, stderr=self.log, cwd="/")

    def start(self):
        command = [*self.as_user, self.programs / "postgres", "-D", self.data, "-p", str(self.port),
                   "-k", self.folder, "-c", f"listen_addresses={','.join(['127.0.0.1', *filter(None, [self.also])])}"]
        begun = time.monotonic()
        while True:
            self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, cwd="/")
            while self.process.poll() is None:
                if self.answers():
                    return
                time.sleep(0.05)
            # What was killed leaves processes that end a moment later.
            if time.monotonic() - begun > START_LIMIT_S:
                raise TimeoutError((self.folder / "log").read_text()[-2000:])
            time.sleep(0.2)

    def answers(self) -> bool:
        ready = [self.programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready).returncode == 0

    def kill(self):
        """As when the power fails, but for what is in the system's caches."""
        if self.process is None or self.process.poll() is not None:
            return
        for child in self.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def children(self):
        pid = self.process.pid
        listed = Path(f"/proc/{pid}/task/{pid}/children")
        return [int(child) for child in listed.read_text().split()] if listed.exists() else []

    @contextlib.contextmanager
    def slow(self, table: str, seconds: float):
        """A row that is added takes so long."""
        self.ask(f"""CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END';
            CREATE TRIGGER slow BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION slow()""")
        try:
            yield
        finally:
            self.ask("DROP FUNCTION slow CASCADE")

    def ask(self, sql: str) -> str:
        """What a query answers, without decoration."""
        command = ["psql", "-qAt", self.url, "-c", sql]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
