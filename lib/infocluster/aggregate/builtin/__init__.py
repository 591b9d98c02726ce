# SPDX-License-Identifier: Apache-2.0
"""The built-in module files: aggregators for the controller, each with the collector that feeds it from a node."""
