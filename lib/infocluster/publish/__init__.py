# SPDX-License-Identifier: Apache-2.0
"""Publish: how a batch job's result, and what developers make, get into the one production tree.

A job's result:

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

What a developer made:

1. He asks for paths such as ``world/sample``; `install` checks that they are there and that no rule protects them.
2. As himself, `prepare` repairs the permissions of his files and runs make where a .wwwinstmk is.
3. The path locks are taken, and what jobs left half done there is completed.
4. `development` looks at his tree: what it offers, and what its rules, RCS and [install] ignore leave alone.
5. `trees` finds what differs. `undo` keeps what will be replaced, `origin` notes which tree holds what.
6. What is new or changed is put in place, whole; then goes what his tree no longer has, unless a rule of any
   development tree protects it or another tree installed it. The record is completed, the locks are let go of.
7. The next push carries it to the servers: at once, where he asked for one and nothing failed.
"""
