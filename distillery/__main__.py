"""`python -m distillery`: the same as the `distillery` command."""

import sys

from distillery.cli import main

if __name__ == "__main__":
    sys.exit(main())
