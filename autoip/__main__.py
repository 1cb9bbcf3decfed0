"""``python -m autoip``."""

from __future__ import annotations

import sys

from autoip.cli import main

sys.exit(main())
