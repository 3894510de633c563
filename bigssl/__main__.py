"""`python -m bigssl ...` is `bigssl ...`."""

import sys

from bigssl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
