"""`python -m headrace`: the command line, where its script is not on PATH."""

from headrace.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
