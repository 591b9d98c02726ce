# SPDX-License-Identifier: Apache-2.0
"""Locks: the life of one of them.

1. `lockfile` holds one file or directory with flock(2), shared or exclusive, for a limited wait; what it
   excludes are flock(1), Perl's flock and ourselves. It owns `fcntl` and `filelock`.
2. `tickets` keeps requests of several processes in the order of their arrival, each a file that is locked for as long
   as its request lives.
3. `pathlocks` holds paths of the production tree: a directory covers what is below it, a file blocks its
   parents, a request gets all of its paths or none, in the order of arrival.
4. `slots` lets so many in at once, in the order of arrival.
5. Every lock is the kernel's: it ends with the process that held it, however that process ends.
"""
