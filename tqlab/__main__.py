"""`python -m tqlab` is the `tqlab` command."""

import sys

from .cli import main

sys.exit(main())
