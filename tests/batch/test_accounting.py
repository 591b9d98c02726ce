# SPDX-License-Identifier: Apache-2.0
"""The accounting example: the night's numbers on their way to SSM2."""

from dirq.QueueSimple import QueueSimple

from conftest import Site
from infocluster.queue import ssm

AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"


def consumed(site: Site) -> list[str]:
    """Return what ssmsend would send, in its order."""
    queue = QueueSimple(str(site.root / "var/outgoing"))
    found = []
    for name in queue:
        assert queue.lock(name)
        found.append(queue.get(name).decode("ascii"))
        queue.remove(name)
    return found


def test_changed_days_are_queued_once_and_ssm_carries_them(site: Site) -> None:
    site.protect("world/survey", "*\n")
    (site.root / "var/wwwdev/gather/marks").mkdir(parents=True)
    site.protect("gather/marks", "*\n")
    assert site.batch("accounting-nightly").stdout == "accounting-nightly: 0 days in 0 messages\n"
    for _ in range(3):
        assert site.cgi("survey.cgi", HTTP_USER_AGENT=AGENT).status == 200
    assert site.batch("survey-nightly").returncode == 0
    done = site.batch("accounting-nightly")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("1 day in 1 message\n")
    (message,) = consumed(site)
    assert ssm.faults(message.encode()) == []
    head, *lines = message.splitlines()
    assert head == "Infocluster-summary-message: v0.1"
    values = dict(line.split(": ") for line in lines[:-1])
    assert values | {"Day": ""} == {"Site": "infocluster", "Service": "survey", "Day": "", "People": "3", "Bots": "0"}
    assert site.batch("accounting-nightly").stdout == "accounting-nightly: 0 days in 0 messages\n"
    site.cgi("survey.cgi", HTTP_USER_AGENT=AGENT)
    site.batch("survey-nightly")
    # Something that cannot be purged costs no message, and is told.
    (site.root / "var/outgoing/00000000").symlink_to("00000000")
    done = site.batch("accounting-nightly")
    assert done.returncode == 1 and done.stdout.endswith("1 day in 1 message\n") and "cannot purge" in done.stderr
    (site.root / "var/outgoing/00000000").unlink()
    assert [text.split("People: ")[1].split()[0] for text in consumed(site)] == ["4"]


def test_name_that_ssm_would_not_carry_is_a_fault_of_the_settings(site: Site) -> None:
    site.configure('[accounting]\nsite = "M\u00fcnchen"\n')
    site.protect("world/survey", "*\n")
    (site.root / "var/wwwdev/gather/marks").mkdir(parents=True)
    site.protect("gather/marks", "*\n")
    site.cgi("survey.cgi", HTTP_USER_AGENT=AGENT)
    site.batch("survey-nightly")
    done = site.batch("accounting-nightly")
    assert done.returncode == 78 and "set accounting.site" in done.stderr
    assert consumed(site) == []
