"""Promotion is for admins, is remembered, and never leaves the app without a model."""

import json
import math
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from hub_server import Hub
from seeded_cases import add, say
from signed_in import SignedIn
from sqlalchemy import select
from sqlalchemy.orm import Session

from annotation.retraining import Retraining, RetrainingState
from annotation.settings import Settings
from annotation.store import Store, exposures
from annotation.store.corrections import AspectResponse, NewSubmission, save
from annotation.store.image_files import StoredImage
from annotation.store.items import add_item
from annotation.store.log import promote, promoted
from annotation.store.models import AnswersOf, AuditEntry
from annotation.ui.access import Forbidden, Role
from annotation.ui.context import Studio
from annotation.ui.model_service import ModelLoader, ServableModel, model_to_serve, servable_models
from annotation.ui.models.tab import ModelsHandlers, models_list, models_tab
from m3agiqa.aspects import COMMON_SCALE, Aspect
from m3agiqa.checkpoint.card import CARD_FILE, Card, read_card, write_card
from m3agiqa.checkpoint.comparison import Agreement, ChangedImage, ChangedScore, Compared, Comparison
from m3agiqa.checkpoint.registry import find, register
from m3agiqa.errors import WeightsError

REQUEST = None  # no handler here looks at the request itself
COMPARISON = Comparison(
    "nano 0.2.0",
    "mine 1",
    (
        Compared(
            "people",
            Aspect.QUALITY,
            40,
            Agreement(0.4, 0.5, 1.2, -0.8),
            Agreement(0.7, 0.6, 0.5, 0.1),
            (0.4, 0.9),
        ),
        Compared("data", Aspect.QUALITY, 9, None, Agreement(math.nan, 0.2, 0.5, 0.0)),
    ),
)


def registered(settings: Settings, folder: Path, comparison: Comparison | None = COMPARISON) -> str:
    """A candidate that has nothing but a card; its name."""
    folder.mkdir()
    write_card(Card("mine", "1", "nano", "<people>", "f", {}, {}), folder)
    return register(folder, settings.models, comparison).name


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path / "data", runs=tmp_path / "runs")


@pytest.fixture
def candidate(settings: Settings, tmp_path: Path) -> str:
    return registered(settings, tmp_path / "made")


class Loading:
    """Makes assessors that know their model's name, or fails."""

    def __init__(self) -> None:
        self.fails = False
        self.judged: dict[Aspect, object] = {}

    def __call__(self, name: str, progress: object) -> SimpleNamespace:
        if self.fails:
            raise WeightsError("The weight file x is missing.")
        card = SimpleNamespace(title=f"{name} as loaded", learned_from="something", predictors=self.judged)
        return SimpleNamespace(card=card)


@pytest.fixture
def load() -> Loading:
    return Loading()


@pytest.fixture
def studio(settings: Settings, store: Store, load: Loading) -> Studio:
    loader = ModelLoader("nano", load)
    loader.wait(lambda: False, lambda state: None)
    return Studio(settings, store, SignedIn(Role.ADMIN), loader)


def last_promoted(store: Store) -> str | None:
    with store.database.reading() as session:
        return promoted(session)


def test_an_admin_promotes_and_rolls_back(studio: Studio, candidate: str) -> None:
    handlers = ModelsHandlers(studio)
    _, listed = handlers.show(REQUEST)
    assert f'<button class="promote" type="button" data-model="{candidate}"' in listed
    assert "Not better" not in listed
    assert "Better: quality, 40 images: RMSE falls by 0.70, interval of the fall 0.40 to 0.90." in listed
    assert listed.count("In service") == 1

    message, listed, banner = handlers.serve(REQUEST, candidate)
    assert message == '<p role="alert"></p>'
    assert studio.loader.state.assessor.card.title == f"{candidate} as loaded"
    assert f"<b>{candidate} as loaded</b>" in banner
    assert '<button class="promote" type="button" data-model="nano"' in listed
    assert (last_promoted(studio.store), studio.loader.name) == (candidate, candidate)

    handlers.serve(REQUEST, "nano")
    assert (last_promoted(studio.store), studio.loader.name) == ("nano", "nano")
    with studio.store.database.reading() as session:
        trail = session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
    assert [(entry.action, entry.details["model"]) for entry in trail] == [
        ("promote model", candidate),
        ("promote model", "nano"),
    ]


PEOPLE, OF_DATA = COMPARISON.rows


@pytest.mark.parametrize(
    ("comparison", "doubt"),
    [
        (
            replace(COMPARISON, rows=(replace(PEOPLE, rmse_fall=(-0.1, 0.9)), OF_DATA)),
            "quality, 40 images: RMSE falls by 0.70, interval of the fall −0.10 to 0.90",
        ),
        (
            replace(COMPARISON, rows=(PEOPLE, replace(PEOPLE, rmse_fall=(-0.9, -0.1)))),
            "interval of the fall −0.90 to −0.10",
        ),
        (replace(COMPARISON, rows=(replace(PEOPLE, rmse_fall=None),)), "interval of the fall unknown"),
        (replace(COMPARISON, rows=(OF_DATA,)), "no held-out image was scored by people"),
        (None, "it was compared with no other model"),
    ],
)
def test_what_is_not_known_to_be_better_needs_a_second_wish(
    studio: Studio, settings: Settings, tmp_path: Path, comparison: Comparison | None, doubt: str
) -> None:
    name = registered(settings, tmp_path / "made", comparison)
    handlers = ModelsHandlers(studio)
    listed = handlers.show(REQUEST)[1]
    assert "<b>Not better</b>" in listed and doubt in listed
    click = SimpleNamespace(action="promote", model=name)
    message, listed, _ = handlers.click(REQUEST, click)
    assert doubt in message and "all the same" in message
    assert (last_promoted(studio.store), studio.loader.name) == (None, "nano")
    assert f'data-model="{name}" data-confirmed="true"' in listed
    assert "data-confirmed" not in handlers.show(REQUEST)[1]
    handlers.click(REQUEST, SimpleNamespace(action="promote", model=name, confirmed=True))
    assert (last_promoted(studio.store), studio.loader.name) == (name, name)


def test_a_model_that_judges_less_than_the_one_in_service_says_so(
    studio: Studio, candidate: str, load: Loading
) -> None:
    load.judged = {Aspect.AUTHENTICITY: None}
    studio.loader.switch("nano")
    message, *_ = ModelsHandlers(studio).serve(REQUEST, candidate)
    assert "not better: it does not judge authenticity, as the one in service does. Press again" in message
    assert studio.loader.name == "nano"


@pytest.mark.parametrize("role", [Role.VIEWER, Role.ANNOTATOR])
def test_nobody_else_does(studio: Studio, candidate: str, role: Role) -> None:
    handlers = ModelsHandlers(replace(studio, access=SignedIn(role)))
    with pytest.raises(Forbidden) as refused:
        SignedIn(role).require(REQUEST, Role.ADMIN)
    message, listed, _ = handlers.serve(REQUEST, candidate)
    assert str(refused.value)[:20] in message
    assert "<button" not in listed and candidate in listed
    assert (last_promoted(studio.store), studio.loader.name) == (None, "nano")


def test_what_cannot_be_loaded_leaves_the_old_one_in_service(
    studio: Studio, candidate: str, load: Loading
) -> None:
    old, load.fails = studio.loader.state.assessor, True
    message, listed, banner = ModelsHandlers(studio).serve(REQUEST, candidate)
    assert "The weight file x is missing. nano stays in service." in message
    assert studio.loader.state.assessor is old and "nano as loaded" in banner
    assert candidate in listed
    assert last_promoted(studio.store) is None
    message, *_ = ModelsHandlers(studio).serve(REQUEST, "../../elsewhere")
    assert "no longer registered" in message


def test_a_decision_that_cannot_be_stored_is_not_carried_out(
    studio: Studio, candidate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(work: object) -> None:
        raise WeightsError("The disk is full.")

    broken = SimpleNamespace(transact=full, reading=studio.store.database.reading)
    handlers = ModelsHandlers(replace(studio, store=SimpleNamespace(database=broken)))
    message, *_ = handlers.serve(REQUEST, candidate)
    assert "The disk is full. nano stays in service." in message
    assert studio.loader.name == "nano"


def restarted(store: Store, settings: Settings) -> ModelLoader:
    """A server's loader at its start; of its models it reads the cards only."""

    def load(name: str, progress: object) -> SimpleNamespace:
        return SimpleNamespace(card=read_card(find(name, settings.models)))

    loader = ModelLoader(model_to_serve(store, settings), load, instead=settings.model)
    loader.wait(lambda: False, lambda state: None)
    return loader


def test_the_promoted_model_is_served_after_a_restart_as_long_as_it_is_there(
    settings: Settings, store: Store, candidate: str, png: Callable[[int], bytes]
) -> None:
    assert restarted(store, settings).name == "nano"
    store.database.transact(lambda session: promote(session, candidate, "kim"))
    assert restarted(store, settings).name == candidate
    shutil.rmtree(settings.models / candidate)
    loader = restarted(store, settings)
    assert loader.name == "nano"
    assert loader.state.notice.startswith(
        f"{candidate} was promoted, but cannot be served. There is no model"
    )
    listed = models_list(servable_models(settings, loader), "nano", candidate, is_admin=True)
    assert f"<b>{candidate}</b> was promoted, but could not be served" in listed
    scored_image(store, png)
    handlers = ModelsHandlers(Studio(settings, store, SignedIn(Role.ADMIN), loader))
    panel = handlers.follow(REQUEST)[0]
    assert f"The model {candidate} was promoted, but is gone" in panel and "learns from" not in panel
    assert 'aria-label="Put nano' in handlers.show(REQUEST)[1]
    handlers.serve(REQUEST, "nano")
    assert 'aria-label="Put nano' not in handlers.show(REQUEST)[1]
    assert "is gone" not in handlers.follow(REQUEST)[0]


def test_a_damaged_promoted_model_is_not_served(settings: Settings, store: Store, candidate: str) -> None:
    store.database.transact(lambda session: promote(session, candidate, "kim"))
    (settings.models / candidate / CARD_FILE).write_text("{")
    loader = restarted(store, settings)
    assert loader.name == "nano" and "is damaged or of another version" in loader.state.notice


def test_the_settings_model_can_be_gone_back_to_though_it_comes_from_elsewhere(
    settings: Settings, store: Store, load: Loading
) -> None:
    far = replace(settings, model="somebody/large")
    loader = ModelLoader(far.model, load)
    loader.wait(lambda: False, lambda state: None)
    handlers = ModelsHandlers(Studio(far, store, SignedIn(Role.ADMIN), loader))
    _, listed = handlers.show(REQUEST)
    assert "<h3>somebody/large as loaded</h3>" in listed and "<p>Learned from something.</p>" in listed
    handlers.serve(REQUEST, "nano")
    _, listed = handlers.show(REQUEST)
    assert "<h3>…/large</h3>" in listed, "what it is will be known when it is loaded"
    handlers.serve(REQUEST, "…/large")
    assert (loader.name, last_promoted(store)) == ("somebody/large", "somebody/large")


def test_the_list_shows_before_and_after_and_trusts_no_text(settings: Settings, candidate: str) -> None:
    loader = ModelLoader("nano", load=lambda name, progress: SimpleNamespace())
    listed = models_list(servable_models(settings, loader), "nano", None, is_admin=False)
    assert "&lt;people&gt;" in listed and "<people>" not in listed
    assert "Quality, scored by people" in listed and "Quality, of the data set" in listed
    assert '<td class="better">0.400 → <b>0.700</b>' in listed
    assert '<td class="better">−0.800 → <b>+0.100</b>' in listed, "nearer to no error"
    assert '<td class="">– → <b>–</b></td>' in listed
    hostile = ServableModel('"><script>', Card("<b>", "1", "nano", "", "f", {}, {}))
    assert "<script>" not in models_list([hostile], "nano", "<i>", is_admin=True)
    assert "No model has been trained from corrections yet" in models_list([], "nano", None, True)


def test_of_a_models_path_people_are_told_the_last_part(studio: Studio, tmp_path: Path) -> None:
    folder = tmp_path / "secret place" / "mine"
    folder.mkdir(parents=True)
    write_card(Card("mine", "1", "nano", "Learned.", "f", {}, {}), folder)
    settings = replace(studio.settings, model=str(folder))
    handlers = ModelsHandlers(replace(studio, settings=settings))
    _, listed = handlers.show(REQUEST)
    assert "Set by M3AGIQA_MODEL: …/mine" in listed
    message, *shown = handlers.serve(REQUEST, "…/mine")
    assert (studio.loader.name, last_promoted(studio.store)) == (str(folder), str(folder))
    shutil.rmtree(folder)
    listed += models_list([], str(folder), str(folder) + "/gone", is_admin=True)
    assert "secret place" not in listed + message + shown[0]
    assert "no longer registered" in handlers.serve(REQUEST, str(folder))[0]


# --- retraining, and what it has made ---------------------------------------------------------------


def scored_image(store: Store, png: Callable[[int], bytes]) -> StoredImage:
    """An image of the store of which ann has said something."""
    image = store.images.add(png(1), "cat.png")

    def correct(session: Session) -> None:
        item, _ = add_item(session, image, "a cat", "pets")
        response = AspectResponse(Aspect.QUALITY, 4.0, COMMON_SCALE, "Sharp")
        save(session, NewSubmission("token", item.id, "ann", (response,)))

    store.database.transact(correct)
    return image


def test_a_model_that_was_never_in_service_can_be_discarded(
    studio: Studio, settings: Settings, candidate: str, tmp_path: Path
) -> None:
    handlers, served = ModelsHandlers(studio), registered(settings, tmp_path / "again", None)
    assert served == candidate, "the same checkpoint"
    click = SimpleNamespace(action="discard", model=candidate)
    message, listed, _ = handlers.click(REQUEST, click)
    assert "deleted for good. Press again" in message
    assert f'class="discard" type="button" data-model="{candidate}" data-confirmed="true"' in listed
    assert (settings.models / candidate).is_dir()
    message, listed, _ = handlers.discard(REQUEST, candidate, confirmed=True)
    assert message == '<p role="alert"></p>' and candidate not in listed
    assert list(settings.models.iterdir()) == []
    assert "no longer registered" in handlers.discard(REQUEST, candidate, confirmed=True)[0]


@pytest.mark.parametrize("name", ["{}", "../models/{}", "nano", "", "..", "{}/card.json"])
def test_what_was_in_service_and_what_is_no_model_is_never_deleted(
    studio: Studio, settings: Settings, candidate: str, name: str
) -> None:
    handlers = ModelsHandlers(studio)
    handlers.serve(REQUEST, candidate, confirmed=True)
    handlers.serve(REQUEST, "nano")
    listed = handlers.show(REQUEST)[1]
    assert 'class="discard"' not in listed and listed.count("was in service, so it cannot be discarded") == 1
    message, *_ = handlers.discard(REQUEST, name.format(candidate), confirmed=True)
    assert "has been in service" in message or "no longer registered" in message
    assert (settings.models / candidate / CARD_FILE).is_file()
    assert handlers.serve(REQUEST, candidate)[0] == '<p role="alert"></p>', "it can be gone back to"


@pytest.mark.parametrize("role", [Role.VIEWER, Role.ANNOTATOR])
def test_nobody_but_admins_retrains_or_discards(
    studio: Studio, candidate: str, role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = ModelsHandlers(replace(studio, access=SignedIn(role)))
    monkeypatch.setattr(handlers, "retraining", SimpleNamespace())  # whatever is asked of it fails
    for action in ("retrain", "cancel"):
        message, panel, _ = handlers.start_or_cancel(REQUEST, action)
        assert "this takes an admin" in message and panel == ""
    assert handlers.follow(REQUEST)[0] == ""
    message, listed, _ = handlers.discard(REQUEST, candidate, confirmed=True)
    assert "this takes an admin" in message and candidate in listed


def test_the_panel_says_what_would_be_used_and_how_the_last_one_ended(
    studio: Studio, store: Store, png: Callable[[int], bytes]
) -> None:
    handlers = ModelsHandlers(studio)
    retraining = handlers.retraining
    panel, again = handlers.follow(REQUEST)
    assert "There are no annotations yet" in panel and "<button" not in panel and not again.active
    scored_image(store, png)
    panel, _ = handlers.follow(REQUEST)
    assert '<th scope="row">Quality</th>' in panel and "<td>1</td></tr>" in panel
    assert "There is too little to retrain from" in panel and "<button" not in panel
    assert (
        "Words: 0 images with descriptions to learn from, 0 held out; they stay as they are without 30 and 5."
        in panel
    )
    assert "Left out: 1 description of one word" in panel and "It takes at most about 1 minute." in panel

    for number in range(20):
        say(store, add(store, number, f"prompt {number}"), {Aspect.QUALITY: 3.0}, "ann")
    assert "Retrain from 21 new corrections</button>" in handlers.follow(REQUEST)[0]

    retraining.folder.mkdir(parents=True)
    state = RetrainingState("<lead>", "2026-11-30T08:15:00+00:00", 1, "host")
    ends = [
        (state, "&lt;lead&gt; on 2026-11-30 08:15 UTC, was interrupted. The next one goes on from there."),
        (replace(state, ended_at="x", error="<It> failed."), "has made no model: &lt;It&gt; failed."),
        (replace(state, ended_at="x", candidate="new", newest_correction=21), "has made new."),
    ]
    retraining.log.write_text("<log>")
    for last, sentence in ends:
        (retraining.folder / "state.json").write_text(json.dumps(asdict(last)))
        panel, _ = handlers.follow(REQUEST)
        assert sentence in panel and ("&lt;log&gt;" in panel) == (last.candidate is None)
    assert "Retrain again</button>" in panel and "Nothing was corrected or picked since" in panel


def test_an_admin_pushes_a_model_to_the_hub(studio: Studio, candidate: str, hub: Hub) -> None:
    handlers = ModelsHandlers(studio)
    _, listed, _ = handlers.click(REQUEST, SimpleNamespace(action="push", model=candidate))
    assert listed.count('name="repository"') == 1 and hub.messages == []
    push = SimpleNamespace(action="push", model=candidate, confirmed=True, repository="judge")
    message, listed = handlers.submit(REQUEST, push)
    assert "give it as organisation/name" in message and 'name="repository"' in listed
    push.repository = "team/judge"
    message, listed = handlers.submit(REQUEST, push)
    assert f"Pushed mine 1 to {hub.url}/team/judge" in message and 'name="repository"' not in listed
    assert hub.messages == ["mine-1"] and hub.private == {"team/judge": True}
    for role in (Role.VIEWER, Role.ANNOTATOR):
        others = ModelsHandlers(replace(studio, access=SignedIn(role)))
        assert "this takes an admin" in others.submit(REQUEST, push)[0]
        assert 'class="push"' not in others.show(REQUEST)[1]
    assert "no longer registered" in handlers.push(REQUEST, "../x", "team/judge")[0]
    assert len(hub.messages) == 1


def test_a_push_that_lasts_holds_up_no_other_button(studio: Studio) -> None:
    """Gradio runs the events of one group one after the other."""
    with gr.Blocks() as demo, gr.Tab("Models") as tab:
        models_tab(studio, gr.HTML(), tab, lambda: None)
    events = {each.name: each for each in demo.fns.values()}
    push = events.pop("submit")
    assert push.concurrency_id not in {each.concurrency_id for each in events.values()}
    assert push.concurrency_limit is None, "nor another push"


def test_a_model_of_the_hub_is_started_from_and_pushed(
    studio: Studio, candidate: str, hub: Hub, png: Callable[[int], bytes]
) -> None:
    hub.publish("team/judge", studio.settings.models / candidate, "v1")
    far = replace(studio.settings, model="team/judge", revision="v1")
    scored_image(studio.store, png)
    loader = ModelLoader(
        far.model, lambda name, progress: SimpleNamespace(card=read_card(find(name, far.models)))
    )
    loader.wait(never, lambda state: None)
    handlers = ModelsHandlers(replace(studio, settings=far, loader=loader))
    assert "with descriptions to learn from" in handlers.follow(REQUEST)[0]
    with studio.store.database.reading() as session:
        assert read_card(Retraining(far)._start(session)).title == "mine 1"
    assert "Pushed mine 1 to" in handlers.push(REQUEST, "…/judge", "team/copy")[0]
    assert hub.messages == ["mine-1"]


def test_while_it_runs_pages_ask_again_and_the_new_model_comes_up_at_the_end(
    studio: Studio, candidate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = ModelsHandlers(studio)
    retraining = handlers.retraining
    retraining.folder.mkdir(parents=True)
    monkeypatch.setattr(retraining, "is_running", lambda: True)
    run_log = studio.settings.runs / "corrections" / "log.txt"
    run_log.parent.mkdir(parents=True)
    run_log.write_text("2026-11-30 08:15:00 ship: begun\n2026-11-30 08:15:01 ship: done in 1 s\n")
    state = RetrainingState("lead", datetime.now(UTC).isoformat(), 1, "host")
    for started_at, text in ((state.started_at, "Writing out"), ("2020-01-01T00:00:00+00:00", "Putting")):
        (retraining.folder / "state.json").write_text(
            json.dumps(asdict(replace(state, started_at=started_at)))
        )
        assert text in handlers.tick(REQUEST)[0]
    retraining.log.write_text(
        "plan\n\rdescribe:   0%|   | 0/90 [00:00<?, ?it/s]\rdescribe:  53%|## | 48/90 [01:10<01:02, 1.4s/it]"
    )
    panel, again, listed = handlers.tick(REQUEST)
    assert "48 of 90 images, about 01:02 left" in panel and 'value="0.533"' in panel
    assert 'data-action="cancel"' in panel and again.active and candidate not in str(listed)
    monkeypatch.setattr(retraining, "is_running", lambda: False)
    _, again, listed = handlers.tick(REQUEST)
    assert not again.active and candidate in listed


def test_what_changed_most_is_shown_to_admins_who_then_have_read_it(
    studio: Studio, settings: Settings, store: Store, tmp_path: Path, png: Callable[[int], bytes]
) -> None:
    stored = scored_image(store, png)
    score = ChangedScore(Aspect.QUALITY, 2.2, 3.6, 4.0, ("poor", "good"), ("Old <text>", "New text"))
    unscored = replace(score, aspect=Aspect.AUTHENTICITY, mos=None, texts=None)
    images = [ChangedImage(Path(stored.file).name, "a <cat>", True, (score, unscored))]
    images.append(ChangedImage("elsewhere.png", None, False, (replace(score, texts=None),)))
    name = registered(settings, tmp_path / "made", replace(COMPARISON, changed=tuple(images)))
    handlers, click = ModelsHandlers(studio), SimpleNamespace(action="changes", model=name)
    assert "Images that changed most</button>" in handlers.show(REQUEST)[1]
    _, listed, _ = handlers.click(REQUEST, click)
    assert listed.count("<img ") == 1 and "data:image/jpeg" in listed
    assert "Quality: 2.2 poor → <b>3.6 good</b>, people 4.0" in listed
    assert (
        "<dt>Before</dt><dd>Old &lt;text&gt;</dd>" in listed and "<dt>After</dt><dd>New text</dd>" in listed
    )
    assert "a &lt;cat&gt; (held out)" in listed
    person = studio.access.person(REQUEST).name
    with store.database.reading() as session:
        people, model = (
            exposures.recorded(session, person, each, [1]) for each in (AnswersOf.PEOPLE, AnswersOf.MODEL)
        )
    assert people == {(1, Aspect.QUALITY)} and model == {(1, Aspect.QUALITY), (1, Aspect.AUTHENTICITY)}
    assert "Authenticity: 2.2 poor → <b>3.6 good</b></p>" in listed
    annotators = ModelsHandlers(replace(studio, access=SignedIn(Role.ANNOTATOR)))
    assert "<img" not in annotators.click(REQUEST, click)[1]


# --- switching ------------------------------------------------------------------------------------


def never() -> bool:
    return False


def test_who_has_the_old_model_keeps_it_and_the_next_one_gets_the_new() -> None:
    loader = ModelLoader("old", lambda name, progress: SimpleNamespace(name=name))
    running = loader.wait(never, lambda state: None)
    loader.switch("new")
    assert running.name == "old"
    assert loader.wait(never, lambda state: None).name == "new"


def test_a_switch_while_the_first_model_is_loading_is_final() -> None:
    go = threading.Event()

    def load(name: str, progress: object) -> SimpleNamespace:
        if name == "slow":
            go.wait(5)
        return SimpleNamespace(name=name)

    loader = ModelLoader("slow", load)
    before = set(threading.enumerate())
    loader.start()
    (loading,) = [each for each in threading.enumerate() if each not in before]
    loader.switch("quick")
    go.set()
    loading.join(5)
    assert loader.wait(never, lambda state: None).name == "quick"


def test_a_switch_mends_a_failed_start() -> None:
    def load(name: str, progress: object) -> SimpleNamespace:
        if name == "gone":
            raise WeightsError("gone")
        return SimpleNamespace(name=name)

    loader = ModelLoader("gone", load)
    with pytest.raises(WeightsError):
        loader.wait(never, lambda state: None)
    with pytest.raises(WeightsError):
        loader.switch("gone")
    loader.switch("there")
    assert loader.state.error is None
    assert loader.wait(never, lambda state: None).name == "there"
