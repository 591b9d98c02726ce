# SPDX-License-Identifier: Apache-2.0
"""Gather: the life of one record, from a visitor to a published number.

1. On the server that took it, `drop` appends it as one line to the day's segment
   ``$SERVER_GATHER/<app>/<YYYY-MM-DD>.jsonl``, under the application's lock, on the disk before the answer.
2. The batch host sees the segment, read-only, as ``<gather_dir>/<server>/<host>/<app>/<YYYY-MM-DD>.jsonl``.
   `collect` finds what is new in it: from where `cursor` stands to the last end of a line.
3. `fold` maps the new parts, slice by slice (`slices`), to partial results, on all cores or (`cluster`) on a Dask
   cluster, and merges them.
4. `cursor` commits the results and how far they go in one SQLite transaction: counted once, whatever is
   killed when.
5. `marks` tells the server how far was read; the file travels with the next push.
6. On the server, `sweep` drops a segment when its mark covers it and the keep time is over.
"""
