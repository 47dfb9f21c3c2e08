import logging
from pathlib import Path

import argon2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotation.users import Role, User, UsersFile, parse_users, put_user, read_users, remove_user
from m3agiqa.errors import InputError

QUICK = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


def user(name: str, role: Role = Role.ANNOTATOR, password: str = "long enough") -> User:
    return User.new(name, role, password, QUICK)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "users.txt"
    path.write_text(
        f"# the team\n\n{user('ann', Role.ADMIN).line}\n  {user('ben').line}  \n", encoding="utf-8"
    )
    return path


def test_roles_allow_what_lesser_roles_may():
    allowed = {(role, needed) for role in Role for needed in Role if role.allows(needed)}
    assert allowed == {
        (Role.VIEWER, Role.VIEWER),
        (Role.ANNOTATOR, Role.VIEWER),
        (Role.ANNOTATOR, Role.ANNOTATOR),
        (Role.ADMIN, Role.VIEWER),
        (Role.ADMIN, Role.ANNOTATOR),
        (Role.ADMIN, Role.ADMIN),
    }


def test_users_sign_in_with_their_own_password_only(path):
    put_user(path, user("cem", password="my own secret"))
    users = UsersFile(path)
    assert users.check("cem", "my own secret")
    assert not users.check("cem", "long enough")
    assert not users.check("ann", "my own secret")
    assert not users.check("nobody", "")
    assert not users.check("", "")


@settings(max_examples=60, deadline=None)
@given(
    name=st.text(min_size=1, max_size=100),
    password=st.text(st.characters(codec="utf-8"), min_size=8, max_size=200),
    role=st.sampled_from(Role),
)
def test_any_user_is_read_as_they_were_written_or_refused(tmp_path_factory, name, password, role):
    path = tmp_path_factory.mktemp("users") / "users.txt"
    try:
        put_user(path, User.new(name, role, password, QUICK))
    except InputError:
        assert not path.exists()
        return
    [found] = read_users(path).values()
    assert (found.name, found.role) == (name, role)
    assert found.has_password(password)
    assert not found.has_password(password + "x")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("ann", "line 3: a line has three parts"),
        ("ann:admin", "line 3: a line has three parts"),
        ("ann:boss:x", "line 3: the role is 'boss'; it can be viewer, annotator, admin."),
        ("ann:admin:secret", "line 3: the last part is no argon2 hash"),
        (f":admin:{user('x').password_hash}", "line 3: '' cannot be a user's name"),
        (user("ben").line, "line 3: ben is there twice."),
    ],
    ids=["one part", "two parts", "role", "hash", "name", "twice"],  # hashes differ from process to process
)
def test_a_wrong_line_is_told_with_its_number_and_without_its_secret(line, sentence):
    with pytest.raises(InputError) as error:
        parse_users(f"{user('ben').line}\n# and\n{line}\n", "users.txt")
    assert f"users.txt, {sentence}" in str(error.value)
    assert "secret" not in str(error.value)


def test_a_file_that_cannot_be_used_is_told_at_start(tmp_path):
    path = tmp_path / "users.txt"
    with pytest.raises(InputError, match=r"There is no users file .*users.txt. Make it with"):
        UsersFile(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        UsersFile(path)
    path.write_text("# nobody yet\n")
    with pytest.raises(InputError, match="has no users"):
        UsersFile(path)


def test_changes_are_taken_up_at_once(path):
    users = UsersFile(path)
    put_user(path, user("ann", Role.VIEWER, "another secret"))
    assert users.users()["ann"].role is Role.VIEWER
    assert users.check("ann", "another secret")
    remove_user(path, "ann")
    assert "ann" not in users.users()
    assert not users.check("ann", "another secret")


def test_a_mistake_in_the_file_locks_nobody_out_and_is_logged_once(path, caplog):
    users = UsersFile(path)
    whole = path.read_text()
    path.write_text(whole + "nonsense\n")
    with caplog.at_level(logging.WARNING):
        assert all(users.check("ann", "long enough") for _ in range(3))
    assert len(caplog.records) == 1
    assert "line 5: a line has three parts" in caplog.text
    path.unlink()
    assert users.check("ann", "long enough")
    path.write_text("\n".join([whole, user("cem").line]))
    assert set(users.users()) == {"ann", "ben", "cem"}


def test_changing_a_user_leaves_the_rest_of_the_file_alone(path):
    path.chmod(0o640)
    before = path.read_text().splitlines()
    put_user(path, user("ben", Role.ADMIN))
    after = path.read_text().splitlines()
    assert after[:3] == before[:3]
    assert after[3].startswith("ben:admin:")
    remove_user(path, "ben")
    assert path.read_text().splitlines() == before[:3]
    assert path.stat().st_mode & 0o777 == 0o640
    assert [file.name for file in path.parent.iterdir()] == ["users.txt"]


def test_a_new_file_is_its_owners_alone(tmp_path):
    path = tmp_path / "users.txt"
    put_user(path, user("ann"))
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        put_user(tmp_path / "nowhere" / "users.txt", user("ann"))


def test_a_short_password_is_refused():
    with pytest.raises(InputError, match="at least 8 characters"):
        user("ann", password="1234567")
