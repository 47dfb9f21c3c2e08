"""`python -m m3agiqa`."""

import sys

from m3agiqa.cli import main

sys.exit(main())
