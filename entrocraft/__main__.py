"""`python -m entrocraft` is the `entrocraft` command."""

import sys

from entrocraft.lab.cli import main

sys.exit(main())
