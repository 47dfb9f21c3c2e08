from types import SimpleNamespace

from annotation.ui import messages
from annotation.ui.assess.runs import RunStage, RunState
from annotation.ui.model_service import LoadState, banner_html
from m3agiqa.errors import WeightsError
from m3agiqa.image_metadata import EmbeddedPrompt


def test_message_is_an_escaped_alert():
    assert messages.message("1 < 2") == '<p role="alert">1 &lt; 2</p>'


def test_place_in_the_queue():
    second = messages.status(RunState(stage=RunStage.WAITING, place=2))
    assert "You are number 2 in the queue: one visitor is before you" in second
    third = messages.status(RunState(stage=RunStage.WAITING, place=3))
    assert "You are number 3 in the queue: 2 visitors are before you" in third
    first = messages.status(RunState(stage=RunStage.WAITING, place=1))
    assert "You are next" in first and "number" not in first


def test_status_shows_loading_and_the_time():
    state = RunState(stage=RunStage.LOADING, load=LoadState("Downloading weights", 0.4))
    html = messages.status(state, seconds=3.25)
    assert "Waiting for the model: Downloading weights, 40%" in html
    assert '<span id="elapsed">3.2 s</span>' in html


def test_banner_follows_the_load():
    assert "value=" not in banner_html(LoadState("Loading the language model", 0.0))
    assert 'value="0.400"' in banner_html(LoadState("Downloading weights", 0.4))
    failed = banner_html(LoadState(error=WeightsError("The file <x> is missing.")))
    assert 'role="alert"' in failed
    assert "The file &lt;x&gt; is missing. Assessing an image tries it again." in failed
    card = SimpleNamespace(title="nano 1.0", learned_from="an LLM's scores")
    ready = banner_html(LoadState(assessor=SimpleNamespace(card=card)))
    assert "nano 1.0" in ready
    assert "Learned from an LLM&#x27;s scores." in ready
    assert "alert" not in ready
    instead = banner_html(LoadState(assessor=SimpleNamespace(card=card), notice="<x> is too large."))
    assert instead.startswith(ready) and "&lt;x&gt; is too large." in instead and 'role="alert"' in instead


def test_origin_of_a_prompt():
    html = messages.prompt_origin(EmbeddedPrompt('a "red" <fox>', "A1111 <parameters>"))
    assert '<p data-while-prompt="a &quot;red&quot; &lt;fox&gt;">' in html
    assert "Prompt read from the image file: <b>A1111 &lt;parameters&gt;</b></p>" in html
    assert messages.prompt_origin(EmbeddedPrompt("of an example", "")) == ""


def test_an_offered_prompt_is_shortened_and_whole_in_its_button():
    html = messages.prompt_offer("The image file holds another prompt", "<red> " * 50)
    assert html.count("&lt;red&gt; ") == 50 + 50 + 13
