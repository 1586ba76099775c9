"""`resd`, and `python -m resd_lightning`: a module of its own, so that classes have one import path."""

import logging
import sys

from resd_lightning.overview import answer


def main() -> int:
    """Run `resd` and return its exit status; the page of commands is there at once, since it imports nothing."""
    try:
        status = answer(sys.argv[1:])
        if status is not None:
            return status
        # It misses a package for a kernel that training doesn't use (policy/load.py), and says so in every process.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        from resd_lightning.cli import main as run

        return run()
    except KeyboardInterrupt:  # while the libraries are read
        sys.stderr.write("resd: stopped\n")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
