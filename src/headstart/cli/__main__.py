"""``python -m headstart.cli``."""

import sys

from headstart.cli.entry import main

sys.exit(main())
