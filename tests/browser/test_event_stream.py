"""No call of a page waits for its answer in vain: the script alone, with a server that is played."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from annotation.ui.theme import javascript

PLAYED_SERVER = """() => {
    window.streams = [];
    const encoder = new TextEncoder();
    window.fetch = async (resource) => {
        if (resource.includes("/queue/join")) return new Response(JSON.stringify({event_id: window.nextId}));
        let stream;
        const body = new ReadableStream({start: (controller) => { stream = controller; }});
        const send = (message) => stream.enqueue(encoder.encode(`data: ${JSON.stringify(message)}\\n\\n`));
        window.streams.push({send, end: () => { send({msg: "close_stream"}); stream.close(); }});
        return new Response(body);
    };
}"""
READ = """
async () => {
    window.seen = "";
    const reader = (await fetch("/queue/data")).body.pipeThrough(new TextDecoderStream()).getReader();
    (async () => {
        let part;
        while (!(part = await reader.read()).done) window.seen += part.value;
        window.seen += "end";
    })();
}
"""


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """One that has opened its first stream of answers and reads it."""
    page = browser.new_page()
    page.evaluate(PLAYED_SERVER)
    page.evaluate(javascript("event_stream.js"))
    page.evaluate(READ)
    yield page
    page.close()


def test_a_call_that_arrives_as_the_stream_ends_gets_its_answer(page: Page) -> None:
    page.evaluate("""async () => {
        window.nextId = "late";
        await fetch("/queue/join");
        streams[0].end();
    }""")
    page.wait_for_function("streams.length === 2")
    assert page.evaluate("seen") == ""
    page.evaluate("""() => {
        streams[1].send({msg: "process_completed", event_id: "late"});
        streams[1].end();
    }""")
    page.wait_for_function("seen.endsWith('end')")
    assert [message in page.evaluate("seen") for message in ("late", "close_stream")] == [True, True]
    assert page.evaluate("streams.length") == 2


def test_an_answer_that_is_quicker_than_the_call_is_not_waited_for(page: Page) -> None:
    page.evaluate("""async () => {
        streams[0].send({msg: "process_completed", event_id: "quick"});
        await new Promise((resolve) => setTimeout(resolve, 50));
        window.nextId = "quick";
        await fetch("/queue/join");
        streams[0].end();
    }""")
    page.wait_for_function("seen.endsWith('end')")
    assert page.evaluate("streams.length") == 1
