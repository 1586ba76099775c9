"""`resd`, and `python -m resd_lightning`: a module of its own, so that classes have one import path."""

from resd_lightning.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
