# SPDX-License-Identifier: Apache-2.0
"""Backends: how a backup is started and asked. One is a file here, named as the setting names it.

1. ``backends/NAME.py`` holds a class ``Backend``, made from the core filer's settings; `base` says what it may do.
2. `watch` asks it to `prepare`, to `start`, and then for its `status` until that is the end.
3. After a kill between starting and knowing, it is asked to `confirm`, and may say that it cannot.
"""
