"""People stay signed in when the server starts again."""

import json
import time
from pathlib import Path

import argon2
import httpx
import pytest
from app_server import serve_scripted

from annotation.ui.access import Role
from annotation.ui.sessions import SESSION_SECONDS, SessionsFile
from annotation.users import User, UsersFile, put_user

QUICK = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users.txt"
    for name in ("ann", "ben"):
        put_user(path, User.new(name, Role.ANNOTATOR, f"the secret of {name}", QUICK))
    return path


def test_a_restart_signs_nobody_out(users: Path, tmp_path: Path) -> None:
    cookies = httpx.Cookies()
    for run in range(3):
        with (
            serve_scripted(tmp_path / f"{run}.txt", M3AGIQA_AUTH=str(users)) as server,
            httpx.Client(base_url=server.url, cookies=cookies) as browser,
        ):
            status = browser.get("/gradio_api/login_check").status_code
            if run == 0:
                assert status == 401
                form = {"username": "ann", "password": "the secret of ann"}
                assert browser.post("/login", data=form).status_code == 200
                cookies = httpx.Cookies({cookie.name: cookie.value for cookie in browser.cookies.jar})
                kept = (server.data / "sessions.json").read_text()
                assert not any(cookie.value in kept for cookie in cookies.jar), "no token is kept"
            elif run == 1:
                assert status == 200
                browser.get("/logout")
            else:
                assert status == 401


def test_what_ends_a_session(users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data" / "sessions.json"
    sessions = SessionsFile(path, UsersFile(users))
    sessions["token of ann"], sessions["token of ben"] = "ann", "ben"
    again = SessionsFile(path, UsersFile(users))
    assert again.cookie_id == sessions.cookie_id and path.stat().st_mode & 0o777 == 0o600
    assert (again["token of ann"], again.get("token of nobody"), again.get(None)) == ("ann", None, None)
    digests = list(json.loads(path.read_text())["sessions"])
    assert not any(again.get(digest) for digest in digests), "what the file holds is no token"
    for token in list(again):  # as Gradio signs out
        if again[token] == "ben":
            del again[token]
    assert "token of ben" not in SessionsFile(path, UsersFile(users))
    put_user(users, User.new("ann", Role.ANNOTATOR, "another secret", QUICK))
    assert "token of ann" not in SessionsFile(path, UsersFile(users))
    sessions = SessionsFile(path, UsersFile(users))
    sessions["new token"] = "ann"
    later = time.time() + SESSION_SECONDS + 1
    monkeypatch.setattr("time.time", lambda: later)
    assert "new token" not in sessions


@pytest.mark.parametrize("content", ["", "[]", '{"cookie_id": "a", "sessions": {"b": 1}}'])
def test_a_damaged_file_has_people_sign_in_again(users: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "sessions.json"
    path.write_text(content)
    sessions = SessionsFile(path, UsersFile(users))
    assert not sessions
    sessions["token"] = "ann"
    assert SessionsFile(path, UsersFile(users))["token"] == "ann"
