"""`python -m genlab`, for places where the `genlab` script is not on the path."""

import sys

from genlab.cli.main import main

sys.exit(main())
