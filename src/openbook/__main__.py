"""`python -m openbook`, the same as `openbook`."""

import sys

from openbook.cli import main

sys.exit(main())
