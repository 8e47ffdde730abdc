"""`python -m inference gateway | supervisor | forkserver | validate | compile`: the engine's processes."""

import importlib
import sys

ENTRIES = {
    "gateway": "inference.gateway.server",
    "supervisor": "inference.host.supervisor",
    "forkserver": "inference.host.forkserver",
    "validate": "inference.replica.validate",
    "compile": "inference.host.compiling",
}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in ENTRIES:
        sys.stderr.write(f"usage: python -m inference {' | '.join(ENTRIES)}\n")
        return 2
    entry = importlib.import_module(ENTRIES[sys.argv[1]])
    return int(entry.main(sys.argv[2:]) or 0)


if __name__ == "__main__":
    sys.exit(main())
