# SPDX-License-Identifier: Apache-2.0
"""Applications: each told from end to end, from what a visitor or a clock starts to what a person reads."""
