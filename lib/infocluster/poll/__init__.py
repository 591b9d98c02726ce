# SPDX-License-Identifier: Apache-2.0
"""The polling agent: the life of one backup, from the first poll of a storage cluster to the release.

1. A node of the cluster asks for a core filer and a target time. `state` makes the one file of that key, in state
   ``new``, whole and durable, however many nodes ask at once; `kick` starts backup-watch in the background.
2. `watch`, under the core filer's lock, writes ``starting``, and has the backend start the backup: once. It writes
   ``running`` when that is confirmed. A start that nobody can confirm, since its starter was killed, is ``failed``.
3. `watch` asks the backend how far the backup is, every minute or more often, and writes ``complete``, ``failed``, or
   ``expired`` when the time is over.
4. Every poll is answered from the file by `agent`. The first one that finds ``complete`` writes ``released``, and all
   get the phrase that lets the core filer go on, for as long as the target time is accepted.
5. `watch` removes the file long after nobody may ask for its target time any more.

Only `watch` writes to a file that is there, but for the step from ``complete`` to ``released``.
"""
