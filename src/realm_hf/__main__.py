"""`python -m realm_hf`: the command `realm-hf`, for launchers that start modules."""

import sys

from realm_hf.cli.main import main

sys.exit(main())
