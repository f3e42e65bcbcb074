"""`python -m coresident` is the command line."""

from __future__ import annotations

import sys

from coresident.cli.main import main

sys.exit(main())
