"""Command line of a server's annotations: `python -m annotation import FOLDER`, `export --out FOLDER`."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from annotation.exchange.dataset import MOS_METHODS
from annotation.exchange.exporting import export, pull, push
from annotation.exchange.importing import import_into
from annotation.retraining import Retraining
from annotation.settings import Settings
from annotation.store import Store
from annotation.store.api_tokens import current_token, make_token, revoke_token
from annotation.users import Role, User, put_user, read_users, remove_user
from m3agiqa.aspects import Aspect
from m3agiqa.checkpoint.registry import find, push_model
from m3agiqa.errors import InputError, M3AgiqaError


def main(argv: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Run one command and return its exit code: 0 done, 2 bad input, 130 interrupted."""
    args = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a narrow terminal encoding is no reason to fail
    try:
        return args.command(args, environment)
    except M3AgiqaError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted; nothing was written.\n")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m annotation", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder of the database and the images (default: $M3AGIQA_DATA, else data); a database "
        "elsewhere is named by $DATABASE_URL",
    )

    importing = commands.add_parser(
        "import",
        parents=[data],
        help="images into the annotation queue",
        description="Put images into the annotation queue. The same command again goes on where it was "
        "stopped, and adds nothing twice.",
    )
    importing.add_argument(
        "source",
        type=Path,
        metavar="CSV|DIR|ZIP|IMAGE",
        help="a CSV with the columns image,prompt[,generator]; a folder or ZIP of images, with prompts in "
        ".txt files of the same name or in the images; a ZIP may hold a CSV, too",
    )
    importing.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder that paths in the CSV start from (default: the CSV's own)",
    )
    importing.add_argument(
        "--overlap",
        type=int,
        metavar="N",
        help="annotators per image; 0 puts nothing into the queue (default: $M3AGIQA_OVERLAP, else 1)",
    )
    importing.add_argument("--name", help="what the import is called (default: the source's name)")
    importing.set_defaults(command=_import)

    exporting = commands.add_parser(
        "export",
        parents=[data],
        help="annotations as a data set",
        description="Write images, mean opinion scores and descriptions as a data set that training reads.",
    )
    exporting.add_argument("--out", type=Path, metavar="DIR", required=True, help="its folder")
    exporting.add_argument("--name", default="annotations", help="its name (default: annotations)")
    exporting.add_argument(
        "--aspect",
        action="append",
        type=Aspect,
        choices=list(Aspect),
        help="only this aspect; may be repeated",
    )
    exporting.add_argument(
        "--min-raters",
        type=int,
        default=1,
        metavar="N",
        help="leave out aspects of images that fewer people scored (default: 1)",
    )
    exporting.add_argument("--generator", action="append", help="only images of it; may be repeated")
    exporting.add_argument("--source", action="append", help="only images of this import; may be repeated")
    exporting.add_argument(
        "--mos",
        choices=list(MOS_METHODS),
        default="p910",
        help="; ".join(f"{name}: {meaning}" for name, meaning in MOS_METHODS.items()) + " (default: p910)",
    )
    exporting.add_argument("--gold", action="store_true", help="calibration images, too")
    exporting.add_argument(
        "--all-texts",
        action="store_true",
        help="descriptions of one word, under many images or not in English, too",
    )
    exporting.add_argument(
        "--push",
        metavar="ORGANISATION/NAME",
        help="make it a version of this data set on the Hugging Face Hub, too; a new one is private",
    )
    exporting.add_argument("--without-images", action="store_true", help="push it without its images")
    exporting.set_defaults(command=_export)

    pulling = commands.add_parser("pull", help="an export from the Hugging Face Hub")
    pulling.add_argument(
        "repository",
        metavar="ORGANISATION/NAME[@VERSION]",
        help="the data set (default: its newest version)",
    )
    pulling.add_argument("--out", type=Path, metavar="DIR", required=True, help="the export's folder")
    pulling.set_defaults(command=_pull)

    pushing = commands.add_parser(
        "push",
        parents=[data],
        help="a model to the Hugging Face Hub",
        description="Make a model a version of this repository on the Hugging Face Hub; a new one is "
        "private. M3AGIQA_MODEL and --model take its name.",
    )
    pushing.add_argument("model", help="a retrained model's name, or a checkpoint folder")
    pushing.add_argument("repository", metavar="ORGANISATION/NAME")
    pushing.set_defaults(command=_push)

    retraining = commands.add_parser(
        "retrain",
        parents=[data],
        help="a new model from people's corrections and picks alone",
        description="Export what people said, let the model in service learn from it, and register the new "
        'one as a candidate; it needs `pip install "m3agiqa[train]"`. The same command again goes on where '
        "it was stopped.",
    )
    retraining.add_argument("--plan", action="store_true", help="print what would be done, and train nothing")
    retraining.add_argument("--by", metavar="NAME", help="who starts it, for others (default: the login's)")
    retraining.set_defaults(command=_retrain)
    _add_users_command(commands, data)
    return parser


def _import(args: argparse.Namespace, environment: Mapping[str, str]) -> int:
    settings = _settings(args, environment)
    overlap = settings.overlap if args.overlap is None else args.overlap
    done = total = 0
    with _store(settings) as store, tqdm(unit="image", file=sys.stderr, disable=None) as bar:

        def show(now_done: int, of: int) -> None:
            nonlocal done, total
            done, total, bar.total = now_done, of, of
            bar.update(done - bar.n)

        try:
            report = import_into(
                store,
                args.source,
                overlap=overlap,
                name=args.name,
                images=args.images,
                trusted=True,
                progress=show,
            )
        except KeyboardInterrupt:
            bar.close()
            sys.stderr.write(
                f"\nInterrupted: {done:,} of {total:,} images are in; the same command goes on from there.\n"
            )
            return 130
    sys.stdout.write(report.summary + "\n")
    sys.stderr.writelines(f"{note}\n" for note in report.notes)
    sys.stderr.writelines(f"{place}: {sentence}\n" for place, sentence in report.errors)
    return 0 if report.added or report.known else 2


def _export(args: argparse.Namespace, environment: Mapping[str, str]) -> int:
    with _store(_settings(args, environment)) as store:
        report = export(
            store,
            args.out,
            name=args.name,
            aspects=args.aspect,
            min_raters=args.min_raters,
            generators=args.generator,
            sources=args.source,
            method=args.mos,
            gold=args.gold,
            all_texts=args.all_texts,
        )
    sys.stdout.write(report.text + "\n")
    if args.push:
        address = push(report.folder, args.push, with_images=not args.without_images)
        sys.stdout.write(f"Pushed to {address}\n")
    return 0


def _pull(args: argparse.Namespace, _: Mapping[str, str]) -> int:
    repository, _, version = args.repository.partition("@")
    pull(repository, args.out, version or None)
    sys.stdout.write(f"{args.repository} is in {args.out}\n")
    return 0


def _push(args: argparse.Namespace, environment: Mapping[str, str]) -> int:
    settings = _settings(args, environment)
    folder = find(args.model, settings.models, settings.revision_of(args.model))
    address = push_model(folder, args.repository)
    sys.stdout.write(f"Pushed to {address}\n")
    return 0


def _retrain(args: argparse.Namespace, environment: Mapping[str, str]) -> int:
    settings = _settings(args, environment)
    retraining = Retraining(settings)
    with _store(settings) as store:
        if args.plan:
            return retraining.plan(store)
        try:
            return retraining.run(store, args.by or _login())
        except KeyboardInterrupt:
            sys.stderr.write("\nInterrupted; the same command goes on from here.\n")
            return 130


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in some containers
        return "somebody"


def _settings(args: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    given = {} if args.data is None else {"M3AGIQA_DATA": str(args.data)}
    return Settings.from_environment({**environment, **given})


@contextmanager
def _store(settings: Settings) -> Iterator[Store]:
    store = Store.open(settings.database_url, settings.images)
    try:
        yield store
    finally:
        store.close()


# --- users ---------------------------------------------------------------------------------------


def _add_users_command(commands: argparse._SubParsersAction, data: argparse.ArgumentParser) -> None:
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
        verb.set_defaults(command=_with_users_file(run))
        return verb

    adding = add("add", _add_user, "add a user; the password is asked for")
    adding.add_argument("name")
    adding.add_argument(
        "--role",
        choices=[str(role) for role in Role],
        default=str(Role.ANNOTATOR),
        help="viewers look and assess, annotators correct, too, admins may do everything "
        "(default: annotator)",
    )
    changing = add("passwd", _change_password, "give a user another password")
    changing.add_argument("name")
    for verb in (adding, changing):
        verb.add_argument(
            "--password-stdin", action="store_true", help="read it from standard input instead of asking"
        )
    add("remove", _remove_user, "remove a user; what they have said stays").add_argument("name")
    add("list", _list_users, "list names and roles")
    token = verbs.add_parser(
        "token",
        parents=[data],
        help="make a token for a user's programs",
        description="Make a token that a user's programs send as `Authorization: Bearer TOKEN`. It takes the "
        "place of the user's older one, and has their role; a new password ends it.",
    )
    token.add_argument("name")
    token.add_argument("--file", type=Path, help="the users file (default: $M3AGIQA_AUTH)")
    instead = token.add_mutually_exclusive_group()
    instead.add_argument("--revoke", action="store_true", help="end the token instead of making one")
    instead.add_argument("--show", action="store_true", help="say since when there is one, and its last use")
    token.set_defaults(command=_token)


def _with_users_file(
    run: Callable[[argparse.Namespace, Path], None],
) -> Callable[[argparse.Namespace, Mapping[str, str]], int]:
    def command(args: argparse.Namespace, environment: Mapping[str, str]) -> int:
        run(args, _users_file(args, environment))
        return 0

    return command


def _users_file(args: argparse.Namespace, environment: Mapping[str, str]) -> Path:
    file = args.file or environment.get("M3AGIQA_AUTH")
    if not file:
        raise InputError("Name the users file: --file users.txt, or the variable M3AGIQA_AUTH.")
    return Path(file)


def _add_user(args: argparse.Namespace, file: Path) -> None:
    if file.exists() and args.name in read_users(file):
        raise InputError(f"{file} has a user {args.name!r} already; change the password with passwd.")
    put_user(file, User.new(args.name, Role(args.role), _password(args)))
    sys.stdout.write(f"{args.name} may sign in as {args.role}; start the server with M3AGIQA_AUTH={file}\n")


def _change_password(args: argparse.Namespace, file: Path) -> None:
    user = read_users(file).get(args.name)
    if user is None:
        raise InputError(f"{file} has no user {args.name!r}.")
    put_user(file, User.new(user.name, user.role, _password(args)))
    sys.stdout.write(f"{args.name} has a new password.\n")


def _remove_user(args: argparse.Namespace, file: Path) -> None:
    remove_user(file, args.name)
    sys.stdout.write(f"{args.name} may no longer sign in.\n")


def _list_users(args: argparse.Namespace, file: Path) -> None:
    for user in read_users(file).values():
        sys.stdout.write(f"{user.name}\t{user.role}\n")


def _token(args: argparse.Namespace, environment: Mapping[str, str]) -> int:
    name, file = args.name, _users_file(args, environment)
    user = read_users(file).get(name)
    with _store(_settings(args, environment)) as store:
        if args.revoke:  # also of somebody who was removed
            if not store.database.transact(lambda session: revoke_token(session, name)):
                raise InputError(f"{name} has no token.")
            sys.stdout.write(f"The token of {name} is not valid any more.\n")
        elif args.show:
            with store.database.reading() as session:
                token = current_token(session, name)
            if token is None:
                raise InputError(f"{name} has no token.")
            last_use = (
                f"last used {token.last_used_at:%Y-%m-%d %H:%M}" if token.last_used_at else "not used yet"
            )
            sys.stdout.write(
                f"{name} has a token since {token.created_at:%Y-%m-%d %H:%M} (UTC), {last_use}.\n"
            )
        elif user is None:
            raise InputError(f"{file} has no user {name!r}.")
        else:
            made = store.database.transact(lambda session: make_token(session, name, user.password_hash))
            sys.stdout.write(made + "\n")
            sys.stderr.write(
                f"This is the token of {name}; it is not shown again. Programs send it as "
                "Authorization: Bearer TOKEN.\n"
            )
    return 0


def _password(args: argparse.Namespace) -> str:
    if args.password_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)  # else the password is echoed
            password = getpass.getpass(f"Password of {args.name}: ")
            again = getpass.getpass("The same again: ")
    except (EOFError, getpass.GetPassWarning) as error:
        raise InputError(
            "There is no terminal to ask for the password, so nothing was changed; send it with "
            "--password-stdin, e.g. from a file: --password-stdin < password.txt"
        ) from error
    if again != password:
        raise InputError("The two passwords differ; nothing was changed.")
    return password


if __name__ == "__main__":
    sys.exit(main())
