"""``python -m headstart``, and so ``torchrun -m headstart``."""

import sys

from headstart.cli.entry import main

sys.exit(main())
