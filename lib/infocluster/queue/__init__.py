# SPDX-License-Identifier: Apache-2.0
"""Queue: directories in which one program leaves messages for another, as the directory queue libraries do.

The life of one element:

1. a producer adds it (`simple`: one file; `normal`: a directory of fields): written under a temporary name, and under
   its own name, which tells when, once it is whole;
2. `ssm` says before that whether SSM2 will carry it, where it is for SSM2;
3. a consumer walks the queue and locks it; a lock that somebody else has is a ``False`` and no fault;
4. the consumer reads it, does its work, and touches it where that takes long;
5. it removes the element, or unlocks it for the next one; the element of a consumer that died is unlocked by a purge
   once its lock is old;
6. what fails again and again is set aside, in another queue beside this one (`apps.queues`).
"""
