# SPDX-License-Identifier: Apache-2.0
"""Settings: what is wrong is told with file, line, name and what was expected; what is right is used."""

import os
from pathlib import Path

import pytest

from infocluster import config, settings
from infocluster.errors import ConfigError


def read(directory: Path, text: str) -> config.Settings:
    (directory / "etc").mkdir(exist_ok=True)
    file = directory / "etc/infocluster.toml"
    file.write_text(text)
    return settings.read(str(file))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[sight]\nname = "x"', ":1: sight: unknown section; expected one of site, gather"),
        ('[site]\nurl = "x"\nnam = "x"', ":3: site.nam: unknown setting; expected one of name, url"),
        ("[site]\n\nname = 7", ":3: site.name: 7: expected a text in one line"),
        ('[site]\nname = "a\\nb"', ":2: site.name:"),
        ("[gather]\nkeep_days = 2.5", ":2: gather.keep_days: 2.5: expected a whole number from 0 to 3650"),
        ("[gather]\nkeep_days = true", ":2: gather.keep_days: true: expected a whole number"),
        ("[gather]\nkeep_days = -1", ":2: gather.keep_days: -1: expected a whole number from 0"),
        ('[gather]\ndurable = "yes"', ':2: gather.durable: "yes": expected true or false'),
        (
            "[gather]\nlock_timeout_s = 0",
            ":2: gather.lock_timeout_s: 0: expected a number of seconds from 0.1 to 300",
        ),
        ('[gather]\nmarks = "../marks"', ':2: gather.marks: "../marks": expected a path below the trees'),
        (
            '[mail]\n# transport = "smtp"\ntransport = "pigeon"',
            ':3: mail.transport: "pigeon": expected one of "smtp"',
        ),
        *(
            (f'[site]\nname = "x"\nurl = "{url}"', f':3: site.url: "{url}": expected an address such as')
            for url in ("www.example.org", "javascript:x", "http://", "https:///x", "http://a b/")
        ),
        *(
            (f'[mail]\nto = ["root", "{to}"]', f':2: mail.to: ["root", "{to}"]: expected a list, each an address')
            for to in ("x y", "", "a@", "@b", "a@b@c", "a,b@c", "x <y", "x <>")
        ),
        ('[mail]\nfrom = ""', ':2: mail.from: "": expected an address such as "www@example.org"'),
        ('[[groups]]\nname = "a"\nnodes = "b"\n\n' * 2, ':6: groups.name: "a": expected a name of its own'),
        ('[[servers]]\nname = "web1"', ":1: servers.destination: has to be set"),
        (
            '[[servers]]\nname = "web1"\ndestination = "a"\n[[servers]]\nname = "a\\tb"\ndestination = "b"',
            ":5: servers.name: ",
        ),
        ("[servers]\nname = 'web1'", ":1: servers: expected [[servers]], once for each"),
        ("site = 3", ": expected a section [site]"),
        ("[site]\nname = \n", "Invalid value (at line 2"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert str(tmp_path / "etc/infocluster.toml") in str(error.value)
    assert told in str(error.value)


def test_file_that_is_missing_or_not_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the settings .*: No such file"):
        settings.read(str(tmp_path / "none.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"[site]\nname = '\xff'")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 15"):
        settings.read(str(tmp_path / "bytes.toml"))


def test_empty_file_gives_every_default_and_directories_within_its_tree(tmp_path: Path) -> None:
    found = read(tmp_path, "")
    for setting in settings.TABLE:
        if setting.section in settings.REPEATED:
            continue
        assert setting.name in found[setting.section]
    assert found["site"]["production_dir"] == str(tmp_path / "var/www")
    assert found["site"]["development_dirs"] == [str(tmp_path / "var/wwwdev"), str(tmp_path / "var/wwwudev")]
    assert found["mail"]["sendmail"] == "/usr/sbin/sendmail"
    assert found["servers"] == []


def test_addresses_of_every_form_and_a_host_of_two_kinds_are_taken(tmp_path: Path) -> None:
    host = '[[servers]]\nname = "www"\ndestination = "/a"\n'
    text = (
        '[site]\nurl = "http://[::1]:8080"\n[mail]\nfrom = "Web, all <www@example.org>"\nto = ["root", "a+b@c.d"]\n'
    )
    found = read(tmp_path, text + host + host + 'kind = "ftp"\n')
    assert [server["kind"] for server in found["servers"]] == ["web", "ftp"]


def test_sample_says_every_default_and_uncommented_it_reads_the_same(tmp_path: Path) -> None:
    sample = settings.sample()
    defaults = read(tmp_path, "")
    assert read(tmp_path, sample) == defaults
    # Remove the # of every setting of the sections that are given once.
    lines = []
    for line in sample.splitlines():
        if line.startswith("#[["):
            break
        is_setting = any(line.startswith(f"#{setting.name} = ") for setting in settings.TABLE)
        lines.append(line[1:] if is_setting else line)
    assert len([line for line in lines if " = " in line and not line.startswith("#")]) == len(
        [setting for setting in settings.TABLE if setting.section not in settings.REPEATED]
    )
    assert read(tmp_path, "\n".join(lines)) == defaults


def test_default_of_every_setting_is_of_its_own_kind() -> None:
    for setting in settings.TABLE:
        assert setting.default is None or setting.kind.fits(setting.default), setting.name
        assert setting.section in settings.SECTIONS


def test_directories_count_from_the_tree_that_will_hold_the_file(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    file = tmp_path / "etc/infocluster.toml"
    file.write_text('[site]\nstate_dir = "/elsewhere"\n')
    found = settings.read(str(file), "/opt/tree")
    assert found["site"]["production_dir"] == "/opt/tree/var/www"
    assert found["site"]["state_dir"] == os.path.normpath("/elsewhere")
