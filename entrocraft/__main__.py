"""`python -m entrocraft` is the `entrocraft` command."""

import sys

from entrocraft.cli import main

sys.exit(main())
