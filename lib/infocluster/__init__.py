# SPDX-License-Identifier: Apache-2.0
"""infocluster: everything arrives through gather, everything leaves through publish and push.

A lock guards both. doc/design.md draws the rooms; a module imports only from floors below its own.
"""

import sys

__version__ = "0.1.0"

_ROOT = __file__.rpartition("/lib/")[0]
# Where other people's packages are: an installation's own, or the virtual environment that make leaves in a
# checkout. They stand last: what is found before costs a hit nothing, and one that is not there is passed over.
sys.path += [
    f"{_ROOT}/lib/site",
    f"{_ROOT}/build/venv/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages",
]
