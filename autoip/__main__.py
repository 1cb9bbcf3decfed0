"""``python -m autoip``."""

from __future__ import annotations

import sys

from autoip.commands.main import main

sys.exit(main())
