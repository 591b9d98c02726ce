# SPDX-License-Identifier: Apache-2.0
"""Play a whole day of a small cluster on this machine, with the installed programs, and check what came of it.

Usage: play.py [--hits FILE] [--serve] TREE

TREE is an installation (make install PREFIX=TREE). Three web servers on loopback run its CGI programs; visitors
come with real User-Agents over HTTP; then the night: survey-nightly, wwwpush, mail-report. Every number that is
published is held against a count of its own. Exit status: 0 when all agree, 1 otherwise.

FILE has a visit a line, tab-separated, the User-Agent last. Without it, a few thousand agents are drawn from the
lists that the packages fake-useragent (browsers of people, by how frequent they are) and crawler-user-agents (bots)
publish.
"""

import argparse
import http.client
import importlib.resources
import json
import mailbox
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

import mailserver
from infocluster.web import devserver

SERVERS = ("web1", "web2", "web3")
VISITORS = 8
PEOPLE, BOTS = 2500, 500
KEPT_BYTES = 512
"""Of an agent; the default of agent_limit_bytes."""


class Story:
    """The demo as it goes: what is told, and what did not agree."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.faults: list[str] = []
        self.lines = 0

    def tell(self, text: str) -> None:
        self.lines += 1
        print(f"{self.lines:2}. {text}", flush=True)

    def check(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            self.faults.append(f"{what}: {found!r}, and the demo counted {expected!r}")

    def batch(self, program: str, *arguments: str) -> str:
        """Run an installed program as cron would and return its last line."""
        done = subprocess.run(
            [str(self.tree / "batch" / program), *arguments],
            env={"PATH": os.defpath, "LANG": "C.UTF-8"},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        if done.returncode:
            self.faults.append(f"{program} ended with {done.returncode}: {done.stderr.strip()}")
        return (done.stdout.strip().splitlines() or ["said nothing"])[-1]


def main() -> int:
    usage = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    usage.add_argument("--hits", type=Path, help="a visit a line, the User-Agent behind the last tab")
    usage.add_argument("--serve", action="store_true", help="go on serving until interrupted")
    usage.add_argument("tree", type=Path, help="an installation")
    asked = usage.parse_args()
    tree = asked.tree.resolve()
    began = time.monotonic()
    story = Story(tree)
    try:
        agents = agents_of(asked.hits) if asked.hits else published_agents()
    except OSError as error:
        usage.error(f"cannot read {asked.hits}: {error.strerror}")
    if not agents:
        usage.error(f"cannot replay {asked.hits}: there is no visit in it")
    with ExitStack() as open_now:
        mail = open_now.enter_context(mailserver.running())
        lay_out(tree, mail.port)
        urls = [open_now.enter_context(devserver.serving(site(tree, server))) for server in SERVERS]
        story.tell(f"Three web servers listen at {', '.join(urls)}; each gathers in a directory of its own.")
        story.tell("Settings are compiled: " + story.batch("check-site", "-compile"))
        visit_all(story, urls, agents)
        story.tell(f"The night counts: {story.batch('survey-nightly')}")
        story.tell(f"and again, counting nothing twice: {story.batch('survey-nightly')}")
        story.tell(f"The push brings it to every server: {story.batch('wwwpush', '-all')}")
        story.tell(f"The report goes by mail: {story.batch('mail-report')}")
        check_results(story, urls, agents)
        check_letter(story, mail, len(agents))
        page = tree / "var/servers/web1/www/world/survey/index.html"
        story.tell(f"The page is {page}")
        story.tell(f"and is served at {urls[0]}/survey/")
        if story.faults:
            story.tell(f"{len(story.faults)} results do not agree:")
            print(*story.faults, sep="\n", file=sys.stderr)
        else:
            took = time.monotonic() - began
            story.tell(f"Every number agrees with a count of its own, on all three servers. {took:.0f} s.")
        if asked.serve:
            print("Serving until interrupted (Ctrl-C).", flush=True)
            try:
                while True:
                    time.sleep(3600)
            except KeyboardInterrupt:
                print()
    return 1 if story.faults else 0


def lay_out(tree: Path, mail_port: int) -> None:
    """Make a new, empty site: trees, gather directories, settings."""
    for name in ("www", "wwwdev", "wwwudev", "state", "gather", "servers"):
        shutil.rmtree(tree / "var" / name, ignore_errors=True)
    for directory in ("www/world", "wwwdev/world/survey", "wwwudev", "state"):
        (tree / "var" / directory).mkdir(parents=True)
    (tree / "var/wwwdev/world/survey/.wwwinstrc").write_text("# published by survey-nightly\n*.html\n*.json\n*.csv\n")
    settings = f'[mail]\nsmtp_host = "127.0.0.1"\nsmtp_port = {mail_port}\n'
    for server in SERVERS:
        (tree / "var/gather" / server / "www").mkdir(parents=True)
        (tree / "var/servers" / server / "www/world").mkdir(parents=True)
        settings += f'[[servers]]\nname = "{server}"\ndestination = "var/servers/{server}/www"\n'
    (tree / "etc/infocluster.toml").write_text(settings)


def site(tree: Path, server: str) -> devserver.Site:
    """Return what a web server of the cluster serves."""
    gather = {"SERVER_GATHER": str(tree / "var/gather" / server / "www")}
    return devserver.Site(str(tree / "cgi-bin"), str(tree / "var/servers" / server / "www/world"), gather)


def visit_all(story: Story, urls: list[str], agents: list[str]) -> None:
    """Send every visit over HTTP, to the servers in turn, from a few visitors at once."""
    began = time.monotonic()
    shares = [list(enumerate(agents))[start::VISITORS] for start in range(VISITORS)]
    with ThreadPoolExecutor(VISITORS) as visitors:
        statuses = sum(visitors.map(lambda share: visit(urls, share), shares), Counter[int]())
    took = time.monotonic() - began
    story.check("answers of the visits, by status", dict(statuses), {200: len(agents)})
    story.tell(
        f"{len(agents)} visits come with {len(set(agents))} different agents in {took:.0f} s; each is answered 200."
    )


def visit(urls: list[str], share: list[tuple[int, str]]) -> Counter[int]:
    statuses: Counter[int] = Counter()
    hosts = [url.removeprefix("http://") for url in urls]
    connections = [http.client.HTTPConnection(host, timeout=60) for host in hosts]
    for number, agent in share:
        connection = connections[number % len(connections)]
        connection.putrequest("GET", "/cgi-bin/survey.cgi", skip_accept_encoding=True)
        connection.putheader("User-Agent", agent.encode("utf-8"))
        connection.endheaders()
        reply = connection.getresponse()
        reply.read()
        statuses[reply.status] += 1
    return statuses


def check_results(story: Story, urls: list[str], agents: list[str]) -> None:
    """Hold what the servers serve against a count of the agents that were sent."""
    import ua_parser

    browsers: Counter[str] = Counter()
    bots = 0
    for agent, visits in Counter(sent.encode()[:KEPT_BYTES].decode("utf-8", "replace") for sent in agents).items():
        said = ua_parser.parse(agent)
        spider = said.device is not None and said.device.family == "Spider"
        if spider or any(word in agent.lower() for word in ("bot", "crawl", "spider")):
            bots += visits
        elif not agent.strip():
            browsers["(none sent)"] += visits
        else:
            browsers[said.user_agent.family if said.user_agent else "(unknown)"] += visits
    for url in urls:
        with urlopen(f"{url}/survey/index.json", timeout=10) as reply:
            numbers = json.load(reply)
        story.check(f"visits at {url}", numbers["visits"], len(agents))
        story.check(f"bots at {url}", numbers["bots"], bots)
        shown = dict(numbers["tables"][0]["rows"])
        rest = numbers["tables"][0]["rest"] or [0, 0]
        story.check(f"browsers at {url}", {name: browsers[name] for name in shown}, shown)
        story.check(f"all browsers at {url}", sum(shown.values()) + rest[1], sum(browsers.values()))
        with urlopen(f"{url}/cgi-bin/survey.cgi", timeout=10) as reply:
            story.check(
                f"number in the summary at {url}",
                str(len(agents) - bots) in plain(reply.read().decode("utf-8")),
                True,
            )
        with urlopen(f"{url}/survey/", timeout=10) as reply:
            page = reply.read()
            story.check(f"picture in the page at {url}", b"<svg" in page and b"<script" not in page, True)


def check_letter(story: Story, mail: mailserver.MailServer, visits: int) -> None:
    """Hold the letter that was mailed against the number of visits, and keep it in a maildir."""
    directory = story.tree / "var/maildir"
    shutil.rmtree(directory, ignore_errors=True)
    maildir = mailbox.Maildir(directory)
    story.check("letters", len(mail.taken), 1)
    for _, letter in mail.taken:
        maildir.add(letter)
        text = letter.get_body(("plain",))
        story.check("number in the letter", text is not None and str(visits) in plain(text.get_content()), True)
        story.tell(f'The letter "{letter["Subject"]}" lies in {directory}')


def plain(text: str) -> str:
    """Return a text with the separators of thousands taken out of its numbers."""
    return text.replace("\u202f", "").replace("\u00a0", "").replace(",", "")


def agents_of(file: Path) -> list[str]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        # A header field has no blanks at its ends.
        return [line.rstrip("\n").rpartition("\t")[2].strip() for line in lines if line.strip()]


def published_agents() -> list[str]:
    """Draw people by how frequent their browser is, and bots evenly; the same ones each time."""
    import crawleruseragents  # type: ignore[import-untyped]

    lines = (importlib.resources.files("fake_useragent") / "data/browsers.jsonl").read_text("utf-8").splitlines()
    known = [json.loads(line) for line in lines]
    bots = [agent for crawler in crawleruseragents.CRAWLER_USER_AGENTS_DATA for agent in crawler["instances"]]
    draw = random.Random(1)
    people = draw.choices([item["useragent"] for item in known], [item["percent"] for item in known], k=PEOPLE)
    agents = [*people, *draw.choices(bots, k=BOTS)]
    draw.shuffle(agents)
    # A header field cannot carry line ends, nor blanks at its ends.
    return [" ".join(agent.split()) for agent in agents]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
