"""
``python -m pybtrfs``.
"""

import sys

from pybtrfs.cli import main

sys.exit(main())
