import time
from pathlib import Path
from types import SimpleNamespace

import argon2
import gradio as gr
import pytest
from waiting import run_async

from annotation.settings import Settings
from annotation.ui.access import Access, Forbidden, Person, Role, SpaceAccess
from annotation.ui.header import signed_in
from annotation.ui.quota import Quota
from annotation.users import User, put_user, remove_user
from m3agiqa.errors import InputError

QUICK = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users.txt"
    for name, role in (("ann", Role.ADMIN), ("ben", Role.ANNOTATOR), ("vera", Role.VIEWER)):
        put_user(path, User.new(name, role, f"secret of {name}", QUICK))
    return path


def by_login(name: str | None) -> gr.Request:
    return gr.Request(username=name)


def on_spaces(session: dict) -> gr.Request:
    """A request as gr.LoginButton's middleware leaves it."""
    return gr.Request(SimpleNamespace(scope={"session": session}))


def hugging_face(name: str, expires_in: float = 3600) -> dict:
    info = {"userinfo": {"preferred_username": name}, "expires_at": int(time.time() + expires_in)}
    return {"oauth_info": info}


def test_without_configuration_there_is_one_local_user_who_may_do_everything(store):
    for environment in ({}, {"SPACE_ID": ""}):
        access = Access.from_settings(Settings(), environment)
        assert access.require(by_login(None), Role.ADMIN) == Person("local", Role.ADMIN)
        assert access.launch_options(store.database, Quota(0)) == {}


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_a_local_address_needs_no_warning(address):
    assert Access().warning(address) == ""


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.5", "::", "studio.example.org"])
def test_an_open_server_is_warned_about(address, users):
    assert "M3AGIQA_AUTH" in Access().warning(address)
    assert Access.from_settings(Settings(auth=users), {}).warning(address) == ""
    assert Access.from_settings(Settings(), {"SPACE_ID": "a/b"}).warning(address) == ""


def test_a_users_file_says_who_may_do_what(users):
    access = Access.from_settings(Settings(auth=users), {})
    assert access.person(by_login("ben")) == Person("ben", Role.ANNOTATOR)
    assert access.require(by_login("ann"), Role.ANNOTATOR).name == "ann"
    with pytest.raises(Forbidden, match="vera is signed in as a viewer, and this takes an annotator"):
        access.require(by_login("vera"), Role.ANNOTATOR)
    with pytest.raises(Forbidden, match="this takes an admin"):
        access.require(by_login("ben"), Role.ADMIN)


@pytest.mark.parametrize("name", [None, "", "local", "zoe", "ann "])
def test_who_is_not_in_the_users_file_is_nobody(users, name):
    with pytest.raises(Forbidden, match="sign in again"):
        Access.from_settings(Settings(auth=users), {}).person(by_login(name))


def test_who_is_removed_while_signed_in_may_do_nothing_any_more(users):
    access = Access.from_settings(Settings(auth=users), {})
    remove_user(users, "ann")
    with pytest.raises(Forbidden):
        access.require(by_login("ann"), Role.VIEWER)
    assert "no longer a user" in signed_in(access, by_login("ann"))


def test_the_login_page_checks_passwords(users, store):
    check = Access.from_settings(Settings(auth=users), {}).launch_options(store.database, Quota(0))["auth"]
    assert run_async(check("ann", "secret of ann"))
    assert not run_async(check("ann", "secret of ben"))


def test_a_wrong_users_file_stops_the_start(tmp_path):
    with pytest.raises(InputError):
        Access.from_settings(Settings(auth=tmp_path / "missing.txt"), {})


def test_a_users_file_goes_before_hugging_face(users):
    access = Access.from_settings(Settings(auth=users), {"SPACE_ID": "a/b", "OAUTH_CLIENT_ID": "c"})
    assert access.person(by_login("vera")).role is Role.VIEWER


def test_on_spaces_names_come_from_hugging_face():
    settings = Settings(admins=frozenset({"boss"}))
    access = Access.from_settings(settings, {"SPACE_ID": "a/b", "OAUTH_CLIENT_ID": "c"})
    assert access.person(on_spaces(hugging_face("ann"))) == Person("ann", Role.ANNOTATOR)
    assert access.person(on_spaces(hugging_face("boss"))) == Person("boss", Role.ADMIN)


@pytest.mark.parametrize("session", [{}, {"oauth_info": None}, hugging_face("boss", expires_in=-1)])
def test_on_spaces_the_public_looks_and_assesses(session):
    access = SpaceAccess(frozenset({"boss"}), has_login=True)
    assert access.require(on_spaces(session), Role.VIEWER) == Person("", Role.VIEWER)
    with pytest.raises(Forbidden, match="Sign in as an annotator to do this"):
        access.require(on_spaces(session), Role.ANNOTATOR)


def test_on_spaces_without_a_login_nobody_is_more_than_a_viewer():
    access = Access.from_settings(Settings(admins=frozenset({"boss"})), {"SPACE_ID": "a/b"})
    assert not access.has_login
    with pytest.raises(Forbidden, match="nobody can sign in here"):
        access.require(on_spaces(hugging_face("boss")), Role.ANNOTATOR)
    assert access.person(by_login("boss")).role is Role.VIEWER


def test_the_head_says_who_is_signed_in_and_how_to_leave(users):
    html = signed_in(Access.from_settings(Settings(auth=users), {}), by_login("ben"))
    assert "<b>ben</b> (annotator)" in html
    assert 'href="logout"' in html
    nasty = signed_in(SpaceAccess(frozenset(), True), on_spaces(hugging_face("<b>x")))
    assert "&lt;b&gt;x" in nasty
    assert "logout" not in nasty
