"""Kustomize itself, out of a package of PyPI that has it as a library.

The package asks for a newer Python than many have, for its own few lines of it; the library does
not. So `deploy/check` unpacks it, and this calls it.
"""

import ctypes
from pathlib import Path

import yaml


class Kustomize:
    """`kustomize build`."""

    def __init__(self, folder):
        """`folder`: where the package was unpacked."""
        found = list(Path(folder).glob("pykustomize/_lib/linux-amd64/libpykustomize.so"))
        if not found:
            raise SystemExit(f"no library of kustomize in {folder}")
        self.library = ctypes.CDLL(str(found[0]))
        self.library.pykustomize_last_error.restype = ctypes.c_char_p

    def build(self, folder):
        """The resources that `folder` makes."""
        text = ctypes.c_char_p()
        status = self.library.pykustomize_build(str(folder).encode(), b"{}", ctypes.byref(text))
        if status:
            raise ValueError(self.library.pykustomize_last_error().decode())
        return list(yaml.safe_load_all(text.value.decode()))
