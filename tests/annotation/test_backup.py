"""What a server without a lasting disk keeps on the Hub, and begins with again."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from app_server import serve_scripted
from hub_server import NOBODY, Hub, reached
from PIL import Image
from sqlalchemy import func, select
from waiting import wait_until

from annotation import backup
from annotation.settings import Settings
from annotation.store import Store
from annotation.store.corrections import AspectResponse, NewSubmission, save
from annotation.store.items import add_item
from annotation.store.models import Correction
from m3agiqa.aspects import COMMON_SCALE, Aspect
from m3agiqa.errors import InputError, WeightsError

REPOSITORY = "team/annotations"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path / "data", backup=REPOSITORY)


def correct(store: Store, colour: str) -> None:
    """One more image, and what ann says of it."""

    def add(session) -> None:
        Image.new("RGB", (64, 64), colour).save(store.images.folder / f"{colour}.png")
        image = store.images.add(store.images.folder / f"{colour}.png", f"{colour}.png")
        item = add_item(session, image, "a plain colour", "test")[0].id
        response = AspectResponse(Aspect.QUALITY, 4.0, COMMON_SCALE, description="Plain.")
        save(session, NewSubmission(f"token of {colour}", item, "ann", (response,)))

    store.images.folder.mkdir(parents=True, exist_ok=True)
    store.database.transact(add)


def corrections(settings: Settings) -> int:
    store = Store.open(settings.database_url, settings.images)
    with store.database.reading() as session:
        number = session.scalar(select(func.count(Correction.id)))
    store.close()
    return number


def test_a_server_whose_disk_is_gone_begins_with_the_copy(
    hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup.restore(settings)  # the first start: there is nothing yet
    store = Store.open(settings.database_url, settings.images)
    correct(store, "red")
    kept = backup.of(settings, store)
    waiting = f"Corrections that are not in {REPOSITORY} yet: 1"
    assert kept.status() == f"{waiting}; the next copy is made within 5 minutes."
    kept.start()
    wait_until(lambda: kept.status().startswith(f"All corrections are in {REPOSITORY}, copied at"))
    assert hub.private == {REPOSITORY: True}
    correct(store, "blue")
    assert kept.status().startswith(f"{waiting}, copied at")
    kept.scheduler.trigger().result()
    assert kept.status().startswith("All corrections")
    kept.scheduler.trigger().result()  # nothing is new
    assert len(hub.messages) == 2
    kept.scheduler.stop()
    store.close()
    images = sorted(path.name for path in settings.images.glob("*.*"))

    shutil.rmtree(settings.data)
    reached(monkeypatch, NOBODY, Path(settings.data.parent / "other cache"))
    with pytest.raises(WeightsError, match="Hub cannot be reached"):  # else it would begin empty
        backup.restore(settings)
    assert not (settings.data / backup.DATABASE_FILE).exists()
    reached(monkeypatch, hub.url, Path(settings.data.parent / "other cache"))
    backup.restore(settings)
    assert corrections(settings) == 2
    assert sorted(path.name for path in settings.images.glob("*.*")) == images
    backup.restore(replace(settings, backup="team/other"))  # what is there stays
    assert corrections(settings) == 2


def test_a_copy_that_fails_is_told_and_tried_again(hub: Hub, settings: Settings) -> None:
    hub.folder, folder = None, hub.folder
    store = Store.open(settings.database_url, settings.images)
    correct(store, "red")
    kept = backup.of(settings, store)
    kept.start()
    assert re.match(r"Corrections that are not in team/annotations yet: 1; .*HF_TOKEN", kept.status())
    hub.folder = folder
    kept.start()
    wait_until(lambda: kept.status().startswith("All corrections"))
    kept.scheduler.stop()
    store.close()


def test_a_server_that_is_asked_to_end_copies_what_is_new_first(
    hub: Hub, settings: Settings, tmp_path: Path
) -> None:
    environment = {"HF_ENDPOINT": hub.url, "M3AGIQA_BACKUP": REPOSITORY, "M3AGIQA_BACKUP_MINUTES": "1000"}
    environment |= {"HF_TOKEN": "hf_token", "M3AGIQA_DATA": str(settings.data)}
    with serve_scripted(tmp_path / "log.txt", **environment) as running:
        wait_until(lambda: len(hub.messages) == 1)
        store = Store.open(settings.database_url, settings.images)
        correct(store, "red")
        store.close()
        running.process.terminate()
        wait_until(lambda: running.process.status() == psutil.STATUS_ZOMBIE)
    assert len(hub.messages) == 2
    shutil.rmtree(settings.data)
    backup.restore(settings)
    assert corrections(settings) == 1


@pytest.mark.parametrize(
    ("environment", "given", "mount", "sentence"),
    [
        ({"SPACE_ID": "a/b"}, {}, "", "This Space keeps"),
        ({"SPACE_ID": ""}, {}, "", ""),
        ({}, {}, "", ""),
        ({"SPACE_ID": "a/b"}, {"backup": REPOSITORY}, "", ""),
        ({"SPACE_ID": "a/b"}, {}, "data", ""),
    ],
)
def test_a_space_without_storage_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict,
    given: dict,
    mount: str,
    sentence: str,
) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: bool(mount) and path == tmp_path / mount)
    settings = Settings(data=tmp_path / "data" / "studio", **given)
    assert backup.storage_warning(settings, environment).startswith(sentence)
    assert bool(backup.storage_warning(settings, environment)) == bool(sentence)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"M3AGIQA_BACKUP": "annotations"}, "give a data set as organisation/name"),
        ({"M3AGIQA_BACKUP": REPOSITORY, "DATABASE_URL": "postgresql://x/y"}, "leave out DATABASE_URL"),
        ({"M3AGIQA_BACKUP_MINUTES": "0"}, "M3AGIQA_BACKUP_MINUTES is '0'"),
    ],
)
def test_wrong_settings_are_named(environment: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Settings.from_environment(environment)
