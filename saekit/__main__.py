"""`python -m saekit` is `saekit`."""

import sys

from saekit.cli import main

sys.exit(main())
