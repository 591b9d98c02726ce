# SPDX-License-Identifier: Apache-2.0
"""Publish: how a batch job's result gets into the one production tree.

1. A job calls `place.publish` with a directory such as ``world/survey`` and the contents of its files by name.
2. `place` takes the path lock of that directory, so that no install, push or other job is in it.
3. What an earlier run left half done there is completed, or cleared away.
4. `instrc` reads the .wwwinstrc files of the development trees. A name that none of them would have an install
   remove passes; for any other the job is refused, and told the line to add and the file to add it to.
5. A file whose content is there already is left as it is, mtime and all, so that no push sends it again.
6. A journal says what is to happen; the new contents are written under temporary names and fsynced; the journal
   is marked whole; the names are given; the journal goes. Killed before the mark, nothing has happened; killed
   after it, the next publish or push does the rest.
7. The next push carries the directory to the servers. It completes what is unfinished before it reads, so
   the servers get all of a job's files or none.
"""
