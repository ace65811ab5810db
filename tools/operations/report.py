"""What was measured beside what is right: a line each, and whether all was right at the end."""

import sys


class Report:
    def __init__(self):
        self.faults = 0
        self.skipped = 0

    def line(self, holds: bool, what: str, measured, right: str):
        self.faults += not holds
        print(f"{'ok ' if holds else 'BAD'} {what}: {measured}   (right: {right})", flush=True)

    def skip(self, what: str, why: str):
        self.skipped += 1
        print(f"--  {what}: skipped, {why}", flush=True)

    def end(self):
        """Leaves the program: 1 if anything fell short."""
        print(f"{self.faults} fell short, {self.skipped} skipped")
        sys.exit(bool(self.faults))
