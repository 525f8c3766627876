import re
import tomllib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.daemon import config
from snapshotter.daemon.config import SETTINGS, Config, toml
from snapshotter.errors import InvalidArgumentError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def refusal(file: Path, content: str) -> str:
    file.write_text(content)
    with pytest.raises(InvalidArgumentError) as raised:
        config.load(str(file), {}, {})
    return str(raised.value).replace(str(file), "FILE")


class TestFind:
    def test_order(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        The named file comes first, then the variable's, then the usual file if it exists; an empty variable is unset.
        """
        usual = tmp_path / "usual.toml"
        monkeypatch.setattr(config, "FILE", str(usual))
        variable = {"SNAPSHOTTER_CONFIG": "/e"}
        assert config.find("/g", variable) == "/g"
        assert config.find("", variable) == ""
        assert config.find(None, variable) == "/e"
        assert config.find(None, {}) is None
        usual.touch()
        assert config.find(None, {"SNAPSHOTTER_CONFIG": ""}) == str(usual)

    def test_unknown_whether_it_exists(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        If the usual file cannot be looked for, it is not taken for missing.
        """
        (tmp_path / "file").touch()
        monkeypatch.setattr(config, "FILE", str(tmp_path / "file" / "config.toml"))
        with pytest.raises(NotADirectoryError):
            config.find(None, {})


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("SNAPSHOTTER_ROOTS", "SNAPSHOTTER_ROOT"), ("SNAPSHOTTER_CONF", "SNAPSHOTTER_CONFIG")],
)
def test_unknown_variable(name: str, nearest: str) -> None:
    """
    An unknown variable is refused, and the message names the nearest; other programs' variables are ignored.
    """
    config.check_variables(
        ["HOME", "SNAPSHOTTER", "SNAPSHOTTER_CONFIG", *(f"SNAPSHOTTER_{n.upper()}" for n in SETTINGS)]
    )
    with pytest.raises(InvalidArgumentError, match=f"variable '{name}': did you mean '{nearest}'"):
        config.check_variables(["SNAPSHOTTER_ROOT", name])


class TestLoad:
    def test_nothing(self) -> None:
        """
        Without a file, variables and flags, every setting has its default, and says so.
        """
        loaded = config.load(None, {}, {})
        assert loaded.config == Config()
        assert loaded.origins == dict.fromkeys(SETTINGS, "default")

    def test_order(self, file: Path) -> None:
        """
        A flag overrides the environment, the environment the file, the file the default; the origin is named.
        """
        file.write_text('version = 1\nroot = "/f"\naddress = "/f"\nusage = "containerd"\n')
        environ = {"SNAPSHOTTER_ROOT": "/e", "SNAPSHOTTER_ADDRESS": "/e", "SNAPSHOTTER_VERIFY": "false"}
        loaded = config.load(str(file), environ, {"root": "/g"})
        assert loaded.config == Config(root="/g", address="/e", usage="containerd", verify=False)
        assert loaded.origins == dict.fromkeys(SETTINGS, "default") | {
            "root": "--root",
            "address": "SNAPSHOTTER_ADDRESS",
            "usage": str(file),
            "verify": "SNAPSHOTTER_VERIFY",
        }

    def test_every_setting_from_everywhere(self, file: Path) -> None:
        """
        Each setting can be a key, a variable and a flag.
        """
        values: dict[str, Any] = {
            "root": "/r",
            "address": "/a",
            "usage": "containerd",
            "mount_mode": "bind",
            "verify": False,
            "log_level": "debug",
            "log_format": "json",
            "metrics_address": "localhost:9000",
        }
        assert values.keys() == SETTINGS.keys()
        file.write_text("version = 1\n" + "".join(f"{name} = {toml(value)}\n" for name, value in values.items()))
        texts = {name: value if isinstance(value, str) else "false" for name, value in values.items()}
        environ = {f"SNAPSHOTTER_{name.upper()}": text for name, text in texts.items()}
        for loaded in (config.load(str(file), {}, {}), config.load(None, environ, {}), config.load(None, {}, texts)):
            assert loaded.config == Config(**values)
            assert "default" not in loaded.origins.values()

    def test_empty_variable(self) -> None:
        """
        An empty variable counts as unset, because a unit clears variables so; an empty flag is a value.
        """
        environ = {"SNAPSHOTTER_ROOT": "", "SNAPSHOTTER_METRICS_ADDRESS": "localhost:1"}
        assert config.load(None, environ, {"metrics_address": ""}).config == Config()
        with pytest.raises(InvalidArgumentError, match="--root: root is ''"):
            config.load(None, {}, {"root": ""})


class TestRefusals:
    @pytest.mark.parametrize(
        ("key", "nearest"),
        [("adress", "address"), ("Root", "root"), ("metrics", "metrics_address"), ("mode", "mount_mode")],
    )
    def test_unknown_key(self, file: Path, key: str, nearest: str) -> None:
        """
        An unknown key is refused, and the nearest key named.
        """
        expected = f"FILE: unknown setting '{key}': did you mean '{nearest}'?"
        assert refusal(file, f'version = 1\n{key} = "x"\n') == expected
        assert refusal(file, f"version = 1\n[{key}]\n") == expected

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("root = 3", "root is 3, but must be an absolute path"),
            ('root = "relative"', "root is 'relative', but must be an absolute path"),
            ('root = "/a\\u0000b"', "root is '/a\\x00b', but must be an absolute path"),
            ('address = "@abstract"', "address is '@abstract', but must be an absolute path of at most 107 bytes"),
            ('address = "unix:///run/a"', "address is 'unix:///run/a', but must be an absolute path"),
            (f'address = "/{"é" * 54}"', f"address is '/{'é' * 54}', but must be an absolute path of at most 107"),
            ('usage = "all"', 'usage is \'all\', but must be "added" or "containerd"'),
            ("verify = 1", "verify is 1, but must be true or false"),
            ('verify = "true"', "verify is 'true', but must be true or false"),
            ("log_level = []", 'log_level is [], but must be "debug" or'),
            ('metrics_address = "host"', "metrics_address is 'host', but must be an absolute path, \"HOST:PORT\" or"),
            ("metrics_address = 9000", "metrics_address is 9000, but must be"),
        ],
    )
    def test_wrong_value(self, file: Path, line: str, said: str) -> None:
        """
        A value of a wrong type, or out of range, is refused with the valid values.
        """
        assert refusal(file, f"version = 1\n{line}\n").startswith(f"FILE: {said}")

    def test_wrong_text(self) -> None:
        """
        A wrong value in a variable or a flag is refused by the name of the variable or flag.
        """
        with pytest.raises(InvalidArgumentError, match=r"^SNAPSHOTTER_VERIFY: verify is 'yes', but must be true or fa"):
            config.load(None, {"SNAPSHOTTER_VERIFY": "yes"}, {})
        with pytest.raises(InvalidArgumentError, match=r"^--mount-mode: mount_mode is 'overlay', but must be"):
            config.load(None, {}, {"mount_mode": "overlay"})

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            ('root = "/a"', "is missing"),
            ("version = 2\nlater = 1", "is 2"),
            ('version = "1"', "is '1'"),
            ("version = true", "is True"),
        ],
    )
    def test_version(self, file: Path, content: str, found: str) -> None:
        """
        A file of another version is refused for its version, whatever else it has.
        """
        assert refusal(file, content) == f"FILE: version {found}: this release reads `version = 1`"

    def test_no_toml(self, file: Path) -> None:
        """
        A file that is not TOML, or cannot be read, is refused; the line is named.
        """
        assert (
            refusal(file, "version = 1\nroot /a\n")
            == "FILE: Expected '=' after a key in a key/value pair (at line 2, column 6)"
        )
        file.write_bytes(b'version = 1\nroot = "\xff"\n')
        with pytest.raises(InvalidArgumentError, match="can't decode"):
            config.load(str(file), {}, {})
        file.unlink()
        with pytest.raises(InvalidArgumentError, match=r"cannot read the configuration .*: No such file"):
            config.load(str(file), {}, {})

    @given(
        st.dictionaries(st.sampled_from([*SETTINGS, "version"]) | st.text(), st.integers() | st.text() | st.booleans())
    )
    def test_anything(self, tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
        """
        Any file loads, or is refused as invalid.
        """
        path = tmp_path_factory.getbasetemp() / "any.toml"
        text = "".join(f"{toml(key)} = {toml(value)}\n" for key, value in values.items())
        path.write_text(text, encoding="utf-8", errors="replace")
        message = None
        try:
            config.load(str(path), {}, {})
        except InvalidArgumentError as error:
            message = str(error)
        assert message != ""


class TestFiles:
    def test_default(self, file: Path) -> None:
        """
        The default file loads to the defaults, with a comment at each setting.
        """
        text = config.default()
        file.write_text(text)
        assert config.load(str(file), {}, {}).config == Config()
        assert tomllib.loads(text).keys() == {"version", *SETTINGS}
        for block in text.split("\n\n")[1:]:
            assert block.startswith("# ")

    def test_dump(self, file: Path) -> None:
        """
        A dump loads to the configuration in force, and has the origin of each value.
        """
        odd = '/a "quoted" \\ é \x7f\t path'
        file.write_text('version = 1\nusage = "containerd"\n')
        loaded = config.load(str(file), {"SNAPSHOTTER_VERIFY": "false"}, {"root": odd})
        text = config.dump(loaded)
        lines = text.splitlines()
        assert f'usage = "containerd"  # {file}' in lines
        assert "verify = false  # SNAPSHOTTER_VERIFY" in lines
        assert 'log_level = "info"  # default' in lines
        file.write_text(text)
        assert config.load(str(file), {}, {}).config == loaded.config


def test_settings() -> None:
    """
    Each value of a configuration has a setting, in the same order, and its default is valid.
    """
    assert list(SETTINGS) == [field.name for field in fields(Config)]
    for name, value in asdict(Config()).items():
        assert SETTINGS[name].valid(value)
        assert SETTINGS[name].parse(toml(value).strip('"')) == value


def test_docs() -> None:
    """
    The table in docs/daemon.md has every setting, with its flag, its variable and its default.
    """
    rows = [
        f"| `{name}` | `--{name.replace('_', '-')}` | `SNAPSHOTTER_{name.upper()}` | `{toml(value)}` |"
        for name, value in asdict(Config()).items()
    ]
    docs = (Path(__file__).parents[3] / "docs/daemon.md").read_text()
    assert re.findall(r"^\| `\w+` \| `--.*$", docs, re.MULTILINE) == rows
