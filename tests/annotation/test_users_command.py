import getpass
import io
import sys
import warnings
from pathlib import Path

import pytest

from annotation.__main__ import main
from annotation.users import Role, read_users


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users.txt"


@pytest.fixture
def typed(monkeypatch):
    """What is typed at the password prompts, one after the other."""

    def answers(*passwords: str) -> None:
        answer = iter(passwords)
        monkeypatch.setattr(getpass, "getpass", lambda prompt: next(answer))

    return answers


def test_a_user_from_adding_to_removing(path, typed, capsys):
    typed("a long secret", "a long secret", "an even longer one", "an even longer one")
    assert main(["users", "add", "ann", "--role", "admin", "--file", str(path)]) == 0
    assert read_users(path)["ann"].has_password("a long secret")
    assert main(["users", "passwd", "ann", "--file", str(path)]) == 0
    user = read_users(path)["ann"]
    assert user.has_password("an even longer one")
    assert user.role is Role.ADMIN
    capsys.readouterr()
    assert main(["users", "list", "--file", str(path)]) == 0
    assert capsys.readouterr().out == "ann\tadmin\n"
    assert main(["users", "remove", "ann", "--file", str(path)]) == 0
    assert read_users(path) == {}


def test_a_password_from_standard_input_and_a_file_from_the_environment(path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a script\nmore\n"))
    environment = {"M3AGIQA_AUTH": str(path)}
    assert main(["users", "add", "ben", "--password-stdin"], environment) == 0
    assert read_users(path)["ben"].has_password("from a script")
    assert read_users(path)["ben"].role is Role.ANNOTATOR


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["add", "ann"], "has a user 'ann' already"),
        (["add", "cem"], "The two passwords differ"),
        (["passwd", "zoe"], "has no user 'zoe'"),
        (["remove", "zoe"], "has no user 'zoe'"),
    ],
)
def test_mistakes_are_a_sentence_and_change_nothing(path, typed, capsys, command, sentence):
    typed("a long secret", "a long secret", "one password", "another one")
    main(["users", "add", "ann", "--file", str(path)])
    before = path.read_bytes()
    assert main(["users", *command, "--file", str(path)]) == 2
    assert sentence in capsys.readouterr().err
    assert path.read_bytes() == before


def test_the_file_must_be_named(capsys):
    assert main(["users", "list"], {}) == 2
    assert "--file" in capsys.readouterr().err


def test_without_a_terminal_another_way_is_told(path, monkeypatch, capsys):
    def no_terminal(prompt: str) -> str:
        warnings.warn("Can not control echo on the terminal.", getpass.GetPassWarning, stacklevel=2)
        raise EOFError

    monkeypatch.setattr(getpass, "getpass", no_terminal)
    assert main(["users", "add", "ann", "--file", str(path)]) == 2
    assert "There is no terminal" in (told := capsys.readouterr().err) and "--password-stdin" in told
    assert not path.exists()


def test_a_token_from_making_to_revoking(path, typed, capsys, tmp_path):
    typed("a long secret", "a long secret")
    main(["users", "add", "ann", "--file", str(path)])
    command = ["users", "token", "ann", "--file", str(path), "--data", str(tmp_path)]
    capsys.readouterr()
    assert main(command) == 0
    token = capsys.readouterr().out.strip()
    assert main([*command, "--show"]) == 0
    assert "not used yet" in (told := capsys.readouterr().out) and token not in told
    assert token.encode() not in (tmp_path / "annotations.db").read_bytes()
    assert main(["users", "remove", "ann", "--file", str(path)]) == 0
    assert main(command) == 2  # no token for who is no user
    assert "has no user 'ann'" in capsys.readouterr().err
    assert main([*command, "--revoke"]) == 0  # but theirs can be ended
    for without in ("--revoke", "--show"):
        assert main([*command, without]) == 2
        assert "ann has no token" in capsys.readouterr().err
