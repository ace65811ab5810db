"""Lets candle-flash-attn-v3 compile with CUTLASS 3.6.0.

    fit_cutlass.py INCLUDE_FOLDER

3.6.0 gave the template TMA_LOAD_Unpack a second, variadic parameter, and unpacks by
matching both; the kernels name it with one. A specialisation for one is added beside it.
"""

import pathlib
import sys

HEADER = "cute/atom/copy_traits_sm90_tma.hpp"
HEAD = "template <class CopyOp, class... Args>\nstruct TMA_LOAD_Unpack\n"
MARK = "// One parameter, for candle-flash-attn-v3."


def main() -> None:
    path = pathlib.Path(sys.argv[1]) / HEADER
    text = path.read_text()
    if MARK in text:
        return
    start = text.index(HEAD)
    end = text.index("\n};\n", start) + len("\n};\n")
    body = text[start + len(HEAD) : end]
    method = "template <class TS, class SLayout,\n"
    if body.count(method) != 1:
        sys.exit(f"{path} is not the one of CUTLASS 3.6.0")
    body = body.replace(method, "template <class... Args, class TS, class SLayout,\n")
    single = f"\n{MARK}\ntemplate <class CopyOp>\nstruct TMA_LOAD_Unpack<CopyOp>\n{body}"
    path.write_text(text[:end] + single + text[end:])


if __name__ == "__main__":
    main()
