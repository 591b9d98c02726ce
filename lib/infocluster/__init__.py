# SPDX-License-Identifier: Apache-2.0
"""infocluster: everything arrives through gather, everything leaves through publish and push.

A lock guards both. doc/design.md draws the rooms; a module imports only from floors below its own.
"""

__version__ = "0.1.0"
