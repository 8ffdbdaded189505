"""`python -m modfast`: see `modfast.cli`."""

import sys

from modfast.cli import main

sys.exit(main())
