"""`python -m secalign_kit` is the command `secalign-kit`."""

import sys

from .cli import main

sys.exit(main())
