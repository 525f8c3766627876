"""
``python -m pybtrfs``.
"""

import sys

from pybtrfs.cli.main import main

sys.exit(main())
