import argparse
import contextlib
import gc
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pybtrfs import subvolume, syscall
from snapshotter import Mount, Snapshotter, __main__, cli
from snapshotter.cli import arguments, output
from snapshotter.daemon import config
from snapshotter.mounting import mounted
from tests.snapshotter.cli.commands import Run, image_of, names, settle

CODES = {0, 1, 2, 3, 4, 5, 130}

pytestmark = pytest.mark.btrfs


@pytest.fixture
def root(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """
    An empty store, which the environment names.
    """
    path = str(btrfs / "store")
    Snapshotter.create(path).close()
    monkeypatch.setenv("SNAPSHOTTER_ROOT", path)
    return path


def command(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "snapshotter", *argv], capture_output=True, text=True, **options)


def complaint(argv: list[str]) -> tuple[int, str]:
    with contextlib.redirect_stderr(io.StringIO()) as error:
        return cli.main(argv), error.getvalue()


class TestCommands:
    def test_prepare_mount_commit(self, root: str, run: Run, tmp_path: Path) -> None:
        """
        The output of prepare and mounts runs in a shell, and a file written to the mount is in the layer.
        """
        printed = run("prepare", "a")
        assert printed.code == 0
        target = tmp_path / "a target"
        target.mkdir()
        assert shlex.split(printed.out)[-1] == "TARGET"
        line = run("mounts", "a", str(target)).out
        assert shlex.split(line)[:-1] == shlex.split(printed.out)[:-1]
        subprocess.run(line, shell=True, check=True)
        try:
            (target / "file").write_text("content")
        finally:
            syscall.umount2(target)
        assert run("commit", "layer", "a") == (0, "", "")
        with Snapshotter(root) as store, mounted(store.view("v", "layer")) as path:
            assert Path(path, "file").read_text() == "content"

    def test_json_of_mounts(self, layers: str, run: Run) -> None:
        """
        prepare, view, fork and mounts give the mounts as JSON, too.
        """
        with Snapshotter(layers, read_only=True) as store:
            expected = [
                {"type": m.type, "source": m.source, "target": m.target, "options": list(m.options)}
                for m in store.mounts("web")
            ]
        assert json.loads(run("mounts", "web", "--json").out) == expected
        for argv in (["prepare", "p", "base"], ["view", "w", "base"], ["fork", "web", "f"]):
            [mount] = json.loads(run(*argv, "--json").out)
            assert mount["type"] == "btrfs"
            assert ("ro" in mount["options"]) == (argv[0] == "view")

    def test_json_lists(self, layers: str, run: Run) -> None:
        """
        A list has a line for each element, and one of nothing is a list.
        """
        printed = run("ls", "--json").out
        assert len(printed.splitlines()) == len(json.loads(printed)) == 3
        assert run("ls", "name==none", "--json").out == "[]\n"

    def test_bind_mounts(self) -> None:
        """
        A bind mount is printed as mount(8) takes it.
        """
        mount = Mount("bind", "/a b", "sub", ("rbind", "ro"))
        assert output.mount_command(mount, "/mnt") == "mount -o rbind,ro '/a b' /mnt/sub"

    def test_ls(self, layers: str, run: Run) -> None:
        """
        ls lists every snapshot by name, or those that a filter matches.
        """
        infos = json.loads(run("ls", "--json").out)
        assert [(info["kind"], info["name"], info["parent"], info["labels"]) for info in infos] == [
            ("Committed", "base", "", {"a": "b=c"}),
            ("View", "v", "base", {}),
            ("Active", "web", "base", {"owner": "me"}),
        ]
        for info in infos:
            assert datetime.fromisoformat(info["created"]).utcoffset() is not None
            assert info.keys() == {"kind", "name", "parent", "labels", "created", "updated"}
        assert names(run, "kind==view", "labels.owner==me") == ["v", "web"]
        lines = run("ls").out.splitlines()
        assert lines[0].split() == ["KEY", "KIND", "PARENT", "CREATED"]
        assert [line.split()[0] for line in lines[1:]] == ["base", "v", "web"]
        assert run("ls", "kind==").code == 2

    def test_ls_beside_the_owner(self, layers: str, run: Run) -> None:
        """
        Read-only commands need no lock.
        """
        with Snapshotter(layers) as store:
            store.prepare("new", "base")
            assert names(run) == ["base", "new", "v", "web"]
            for argv in ("tree", "usage new", "mounts new"):
                assert run(*argv.split()).code == 0
            assert run("doctor").out.startswith(image_of(layers))

    def test_tree(self, layers: str, run: Run) -> None:
        """
        tree shows children below their parents, with sizes in both forms.
        """
        rows = json.loads(run("tree", "--json").out)
        assert [(row["name"], row["depth"], row["size"], row["inodes"]) for row in rows] == [
            ("base", 0, 0, 1),
            ("v", 1, 0, 0),
            ("web", 1, 8192, 1),
        ]
        assert "└─ web  Active     8.0 KiB" in run("tree").out
        assert "8192" in run("tree", "--bytes").out

    def test_usage(self, layers: str, run: Run) -> None:
        """
        usage measures what it is asked for, in order.
        """
        assert json.loads(run("usage", "web", "base", "--json").out) == [
            {"key": "web", "size": 8192, "inodes": 1},
            {"key": "base", "size": 0, "inodes": 1},
        ]
        assert run("usage", "web").out.splitlines()[1].split() == ["web", "8.0", "KiB", "1"]
        assert run("usage", "web", "--bytes").out.splitlines()[1].split() == ["web", "8192", "1"]
        assert run("usage", "web", "nothing").code == 4

    def test_doctor(self, layers: str, run: Run) -> None:
        """
        doctor says that nothing is wrong, or what is, and how to mend it.
        """
        os.mkdir(f"{layers}/snapshots/stranger")
        found = run("doctor")
        assert found.code == 5
        assert (
            "stranger: it is not the directory of a snapshot\n  cure: `snapshotter doctor --fix` repairs it, or"
            in found.out
        )
        problems = json.loads(run("doctor", "--json").out)
        assert f"{layers}/snapshots/stranger" in [problem["subject"] for problem in problems]
        assert all(problem.keys() == {"subject", "what", "cure"} for problem in problems)


class TestErrors:
    @pytest.mark.parametrize(
        ("argv", "code", "text"),
        [
            ("", 2, "required: COMMAND"),
            ("frob", 2, "invalid choice: 'frob'"),
            ("tere", 2, "invalid choice: 'tere': did you mean 'tree'? (see `snapshotter --help`)"),
            ("setup containrd", 2, "did you mean 'containerd'? (see `snapshotter setup --help`)"),
            ("config dmup", 2, "invalid choice: 'dmup': did you mean 'dump'?"),
            ("setup containerd --config-version 5", 2, "invalid choice: 5 (choose from"),
            ("du web --depth=-1", 2, "'-1' is not a number from 0 on"),
            ("du web --depth=1.5", 2, "'1.5' is not a number from 0 on"),
            ("ls web", 2, "'web' is no field: did you mean 'name'?; the snapshot of that key is 'name==web'"),
            ("ls kind==comitted", 2, "'comitted' is no kind: did you mean 'committed'?"),
            ("ls labels.a==b,kid!=view", 2, "'kid' is no field: did you mean 'kind'? (see `snapshotter ls --help`)"),
            ("ls kind==active labels", 2, "filter 'labels': name the label, as in 'labels.owner==me'"),
            ("ls --columns=key,sise", 2, "'sise' is not a column: did you mean 'size'?"),
            ("ls --sort=-updatd", 2, "'updatd' is not a column: did you mean 'updated'?"),
            ("prepare", 2, "snapshotter prepare --help"),
            ("prepare a b c", 2, "unrecognized arguments: c"),
            ("prepare a --label x", 2, "'x' is not KEY=VALUE"),
            ("prepare a --lab x=y", 2, "unrecognized"),
            ("mounts none", 4, "'none'"),
            ("mounts base", 1, "not active"),
            ("ls --root /nowhere", 4, "'/nowhere' does not exist"),
            ("ls --root /proc", 1, "not on btrfs"),
            ("--root /nowhere ls", 4, "'/nowhere' does not exist"),
            ("ls --root /dev/null", 1, "Not a directory"),
        ],
    )
    def test_codes(self, layers: str, run: Run, argv: str, code: int, text: str) -> None:
        """
        Each mistake has its exit code and one line that names it, and changes nothing.
        """
        before = run("ls", "--json")
        ran = run(*argv.split())
        assert (ran.code, ran.out) == (code, "")
        assert text in ran.err
        assert run("ls", "--json") == before

    def test_lost(self, layers: str, run: Run) -> None:
        """
        A snapshot without its subvolume exits with 5, is named by doctor, marked in tree, and can be removed.
        """
        with Snapshotter(layers) as store:
            settle(store)
            [subvolid] = [option for option in store.mounts("web")[0].options if option.startswith("subvolid=")]
        subvolume.delete_by_id(layers, int(subvolid.removeprefix("subvolid=")))
        assert run("mounts", "web").code == run("usage", "web").code == 5
        assert "└─ web  Active     lost" in run("tree").out
        assert [row["size"] for row in json.loads(run("tree", "--json").out)] == [0, 0, None]
        assert "web: its subvolume is missing" in run("doctor").out
        assert run("rm", "web").code == 0
        assert run("doctor").out.count("web") == 0

    def test_default_store(
        self, layers: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, btrfs: Path
    ) -> None:
        """
        Every command finds the store by --root, else the variable, else the configuration's file.
        """
        here, nowhere = tmp_path / "here.toml", tmp_path / "nowhere.toml"
        here.write_text(f'version = 1\nroot = "{layers}"\n')
        nowhere.write_text('version = 1\nroot = "/nowhere"\n')
        monkeypatch.setenv("SNAPSHOTTER_ROOT", "/nowhere-else")
        assert "'/nowhere-else'" in run("ls", "--config", str(here)).err
        for unset in (
            lambda: monkeypatch.setenv("SNAPSHOTTER_ROOT", ""),
            lambda: monkeypatch.delenv("SNAPSHOTTER_ROOT"),
        ):
            unset()
            monkeypatch.setenv("SNAPSHOTTER_CONFIG", str(nowhere))
            for argv in ("ls", "tree", "usage web", "rm web", "cleanup", "doctor", "prepare a", "mounts web", "init"):
                assert "'/nowhere" in run(*argv.split(), *(["--adopt"] if argv == "init" else [])).err
                assert "/nowhere" not in run("--config", str(here), *argv.split()).err
            monkeypatch.setattr(config, "FILE", str(here))
            monkeypatch.delenv("SNAPSHOTTER_CONFIG")
            assert "base" in names(run)
            assert "'/nowhere-else'" in run("ls", "--root", "/nowhere-else").err
            assert run("rm", "a").code == 0
            assert run("prepare", "web", "base").code == 0

    def test_last_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        Without any of these, the store is the one of the daemon's default, as the help says.
        """
        monkeypatch.delenv("SNAPSHOTTER_ROOT", raising=False)
        monkeypatch.setenv("COLUMNS", "1000")  # argparse breaks lines in paths
        assert arguments.root(argparse.Namespace()) == config.DEFAULTS.root
        shown = cli.parser([]).format_help()
        assert f"else {config.DEFAULTS.root})" in shown
        assert f"else {config.FILE} if it exists)" in shown

    def test_empty_root(self, run: Run) -> None:
        """
        An empty --root, as of an unset variable of a shell, is not the default.
        """
        assert run("--root=", "ls") == (2, "", "snapshotter: --root '' is empty: give the root of a store\n")

    def test_unknown_variable(self, root: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        A misspelled variable is an error of every command, and the message names the nearest.
        """
        monkeypatch.setenv("SNAPSHOTTER_ROTO", "/nowhere")
        for argv in ("ls", "prepare a", "config dump"):
            ran = run(*argv.split())
            assert (ran.code, ran.out) == (2, "")
            assert "unknown environment variable 'SNAPSHOTTER_ROTO': did you mean 'SNAPSHOTTER_ROOT'?" in ran.err
        monkeypatch.delenv("SNAPSHOTTER_ROTO")
        assert names(run) == []

    @pytest.mark.parametrize("name", ["prepare", "fork", "label", "mounts", "info", "usage", "why", "du", "export"])
    def test_no_key(self, root: str, run: Run, name: str) -> None:
        """
        An empty key is wrong usage in every command that takes a key.
        """
        ran = run(name, "", *(["x"] if name in ("fork", "export") else []))
        assert ran.code == 2
        assert f"argument KEY: the key is empty (see `snapshotter {name} --help`)" in ran.err

    @pytest.mark.parametrize("argv", [["mount", "web"], ["import", "new"]], ids=" ".join)
    def test_two_ends_of_options(self, layers: str, run: Run, argv: list[str]) -> None:
        """
        A second "--", which the argparse of some Pythons loses, is wrong usage there, and else the name of no file.
        """
        ran = run(*argv, "--", "--")
        assert (ran.code, "'--' is not accepted as a value after '--'" in ran.err) in ((2, True), (1, False))

    def test_root_wins(self, layers: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        --root, before or behind the command, wins over the environment.
        """
        monkeypatch.setenv("SNAPSHOTTER_ROOT", "/nowhere")
        assert names(run, "--root", layers) == ["base", "v", "web"]
        assert run("--root", layers, "ls").code == run("--root", "/nowhere", "ls", "--root", layers).code == 0

    def test_unprivileged(self, layers: str, unprivileged: Callable[..., Any]) -> None:
        """
        Without a right to the store, one line says so.
        """
        refusal = f"snapshotter: cannot open store {layers!r}: Permission denied: run the command as root\n"
        assert unprivileged(complaint, ["ls"]) == unprivileged(complaint, ["rm", "web"]) == (1, refusal)

    def test_interrupted(self, layers: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        Ctrl-C ends with 130.
        """

        def interrupt(*args: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Snapshotter, "walk", interrupt)
        assert run("ls") == (130, "", "snapshotter: interrupted\n")

    def test_closed_pipe(self, layers: str) -> None:
        """
        Who closes the pipe early gets no complaint.
        """
        reader, writer = os.pipe()
        os.close(reader)
        try:
            ran = subprocess.run(
                [sys.executable, "-m", "snapshotter", "ls"], stdout=writer, stderr=subprocess.PIPE, text=True
            )
        finally:
            os.close(writer)
        assert (ran.returncode, ran.stderr) == (1, "")

    def test_full_output(self, layers: str) -> None:
        """
        Output that cannot be written is a failure.
        """
        with open("/dev/full", "w") as full:
            ran = subprocess.run(
                [sys.executable, "-m", "snapshotter", "ls"], stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert (ran.returncode, ran.stderr) == (1, "snapshotter: No space left on device\n")

    def test_strange_keys(self, root: str, run: Run) -> None:
        """
        A key cannot command the terminal, and ASCII terminals get escapes.
        """
        key = "a\x1b[31m\nü"
        assert run("prepare", key).code == 0
        assert "a\\x1b[31m\\nü" in run("ls").out
        assert json.loads(run("ls", "--json").out)[0]["name"] == key
        ran = command("tree", env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
        assert "a\\x1b[31m\\n\\xfc" in ran.stdout
        ran = command("rm", os.fsdecode(b"\xff"))
        assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def test_noise(self, layers: str, capsys: pytest.CaptureFixture[str], data: st.DataObject) -> None:
        """
        Whatever the arguments, the exit code is one of the closed set, and there is no traceback.
        """
        commands = ["label", "mount", "umount", "import", "purge"]
        commands += ["prepare", "view", "commit", "fork", "mounts", "ls", "tree", "usage", "rm", "cleanup", "doctor"]
        words = ["--json", "--bytes", "--label", "a=b", "--root", "--", "web", "base", "v", "-x", "--help", "init", ""]
        word = st.sampled_from(commands + words) | st.text(max_size=8)
        argv = data.draw(st.lists(word, max_size=3)) if data.draw(st.booleans()) else []
        argv = [data.draw(st.sampled_from(commands)), *argv, *data.draw(st.lists(word, max_size=3))]
        try:
            code: Any = cli.main(argv)
        except SystemExit as end:
            code = end.code
            assert "--help" in argv or "-h" in argv or "--version" in argv
        assert code in CODES
        assert "Traceback" not in capsys.readouterr().err


class TestOutput:
    def test_help(self) -> None:
        """
        Help has examples and the exit codes, for the whole and for each command.
        """
        ran = command("--help")
        assert ran.returncode == 0
        assert "examples:" in ran.stdout
        assert "130 interrupted" in ran.stdout
        assert command("mounts", "--help").stdout.endswith("example: snapshotter mounts web /mnt | sh\n")
        assert command("--version").stdout.startswith("snapshotter ")

    @pytest.fixture
    def terminal(self) -> Iterator[Callable[..., str]]:
        """
        Runs the command on a terminal, and gives what came out there.
        """

        def run(*argv: str, **environment: str) -> str:
            ours, theirs = os.openpty()
            try:
                env = {**os.environ, "TERM": "xterm", **environment}
                env = {name: value for name, value in env.items() if value}
                subprocess.run([sys.executable, "-m", "snapshotter", *argv], stdout=theirs, env=env, check=True)
                return os.read(ours, 65536).decode()
            finally:
                os.close(ours)
                os.close(theirs)

        return run

    def test_terminal(self, layers: str, terminal: Callable[..., str]) -> None:
        """
        A terminal gets colours, unless NO_COLOR is set; a pipe never does.
        """
        coloured = terminal("tree", NO_COLOR="")
        assert "\x1b[36mCommitted" in coloured
        assert "└─ web" in coloured
        assert "\x1b" not in terminal("tree", NO_COLOR="1")
        assert "\x1b" not in terminal("tree", TERM="dumb", NO_COLOR="")
        assert "\x1b" not in command("tree").stdout

    def test_lazy(self, layers: str) -> None:
        """
        A command imports only the modules that it needs, and builds no parser of another command's module.
        """
        script = (
            "import sys, argparse; from snapshotter import cli; made, make = [], argparse.ArgumentParser.__init__\n"
            "def note(*args, **options): made.append(options.get('prog')), make(*args, **options)\n"
            "argparse.ArgumentParser.__init__ = note; code = cli.main(['ls'])\n"
            "print(code, made, *sys.modules, file=sys.stderr)"
        )
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stderr
        assert said.startswith("0 [")
        assert "'snapshotter ls'" in said
        assert "'snapshotter tree'" not in said
        unwanted = {"rich", "pybtrfs.image", "snapshotter.maintenance.doctor", "asyncio", "tempfile", "uuid"}
        unwanted |= {"snapshotter.contract.filters", "snapshotter.analysis.inventory"}
        assert not unwanted & set(said.split())
        assert {name for name in said.split() if name.startswith("snapshotter.cli.commands.")} == {
            "snapshotter.cli.commands.ls"
        }

    @pytest.mark.parametrize("argv", [["--help"], ["--version"], ["frob"], []], ids=" ".join)
    def test_help_imports_no_command(self, argv: list[str]) -> None:
        """
        Help, version and wrong names need the table of commands alone.
        """
        script = (
            "import sys; from snapshotter import cli\n"
            f"try: cli.main({argv})\n"
            "except SystemExit: pass\n"
            "print(*sys.modules, file=sys.stderr)"
        )
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stderr
        assert "snapshotter.cli.arguments" in said.split()
        assert not [name for name in said.split() if name.startswith("snapshotter.cli.commands")]

    def test_table(self) -> None:
        """
        Each command of the table is declared by its module, and has its line in the help of the whole.
        """
        [below] = [action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction)]
        assert list(below.choices) == list(cli.COMMANDS)
        shown = command("--help").stdout
        for name, (_, text) in cli.COMMANDS.items():
            assert f"\n    {name:9} {text}\n" in shown
        headings = [f"\n  {heading}:\n    {next(iter(group))}" for heading, group in cli.GROUPS.items()]
        assert [shown.count(heading) for heading in headings] == [1] * len(headings)
        assert shown.index("    prepare") < shown.index("    purge")


@pytest.mark.parametrize(
    ("argv", "called", "collected"),
    [
        (["events", "--log", "/dev/null", "--follow"], "snapshotter.daemon.log.read", True),
        (["tree"], "snapshotter.analysis.inventory.take", False),
    ],
)
def test_what_runs_until_it_is_stopped_collects_garbage(
    argv: list[str], called: str, collected: bool, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A command of a process of its own looks for no garbage, unless it may run for months.
    """
    seen: list[bool] = []

    def stop(*_: object, **__: object) -> None:
        seen.append(gc.isenabled())
        raise KeyboardInterrupt

    monkeypatch.setattr(called, stop)
    monkeypatch.setattr(sys, "argv", ["snapshotter", *argv])
    try:
        assert __main__.run() == 130
    finally:
        gc.enable()
    assert seen == [collected]
