"""`python -m annotation users`: who may sign in to a server, and as what."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from annotation.users import Role, User, put_user, read_users, remove_user
from m3agiqa.errors import InputError


def add_users_command(commands: argparse._SubParsersAction) -> None:
    """Add the command to those of `python -m annotation`."""
    users = commands.add_parser(
        "users",
        help="who may sign in",
        description="The file of users that M3AGIQA_AUTH names. A running server takes up its changes "
        "at once.",
    )
    verbs = users.add_subparsers(required=True, metavar="VERB")

    def add(name: str, run: Callable[[argparse.Namespace, Path], None], text: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=text, description=text)
        verb.add_argument("--file", type=Path, help="the users file (default: $M3AGIQA_AUTH)")
        verb.set_defaults(command=_with_file(run))
        return verb

    adding = add("add", _add, "add a user; the password is asked for")
    adding.add_argument("name")
    adding.add_argument(
        "--role",
        choices=[str(role) for role in Role],
        default=str(Role.ANNOTATOR),
        help="viewers look and assess, annotators correct, too, admins may do everything "
        "(default: annotator)",
    )
    changing = add("passwd", _passwd, "give a user another password")
    changing.add_argument("name")
    for verb in (adding, changing):
        verb.add_argument(
            "--password-stdin", action="store_true", help="read it from standard input instead of asking"
        )
    add("remove", _remove, "remove a user; what they have said stays").add_argument("name")
    add("list", _list, "list names and roles")


def _with_file(
    run: Callable[[argparse.Namespace, Path], None],
) -> Callable[[argparse.Namespace, Mapping[str, str]], int]:
    def command(args: argparse.Namespace, environment: Mapping[str, str]) -> int:
        file = args.file or environment.get("M3AGIQA_AUTH")
        if not file:
            raise InputError("Name the users file: --file users.txt, or the variable M3AGIQA_AUTH.")
        run(args, Path(file))
        return 0

    return command


def _add(args: argparse.Namespace, file: Path) -> None:
    if file.exists() and args.name in read_users(file):
        raise InputError(f"{file} has a user {args.name!r} already; change the password with passwd.")
    put_user(file, User.new(args.name, Role(args.role), _password(args)))
    sys.stdout.write(f"{args.name} may sign in as {args.role}; start the server with M3AGIQA_AUTH={file}\n")


def _passwd(args: argparse.Namespace, file: Path) -> None:
    user = read_users(file).get(args.name)
    if user is None:
        raise InputError(f"{file} has no user {args.name!r}.")
    put_user(file, User.new(user.name, user.role, _password(args)))
    sys.stdout.write(f"{args.name} has a new password.\n")


def _remove(args: argparse.Namespace, file: Path) -> None:
    remove_user(file, args.name)
    sys.stdout.write(f"{args.name} may no longer sign in.\n")


def _list(args: argparse.Namespace, file: Path) -> None:
    for user in read_users(file).values():
        sys.stdout.write(f"{user.name}\t{user.role}\n")


def _password(args: argparse.Namespace) -> str:
    if args.password_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass(f"Password of {args.name}: ")
    if getpass.getpass("The same again: ") != password:
        raise InputError("The two passwords differ; nothing was changed.")
    return password
