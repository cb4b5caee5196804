"""`python -m tokenworld.cli`: the command line, where the script `tokenworld` is not on the path (torchrun, a sweep's runs)."""

import sys

from tokenworld.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
