"""`python -m distllm.server` is the `distllm` command."""

import sys

from distllm.server.cli import main

sys.exit(main())
