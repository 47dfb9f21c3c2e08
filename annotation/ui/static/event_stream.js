// The answers to all calls of a page come in one stream, which Gradio's server ends once no call is waiting. A call
// that arrives just then is not waited for by the page, which still believes the stream to be open (Gradio 6.31): a
// click without an answer. So the stream goes on here as long as a call lacks its answer.
(() => {
  const fetchOnce = window.fetch.bind(window);
  const waiting = new Set(); // ids of calls
  const answeredEarly = new Set(); // before the page has been told their id
  let endIsKnown = Promise.resolve(); // to the page: a call made after it opens another stream

  const settle = (id) => {
    if (!waiting.delete(id)) answeredEarly.add(id);
  };

  // Whether the page is to see a message of the stream.
  const isForPage = (message) => {
    if (message.msg === "process_completed") settle(message.event_id);
    if (message.msg !== "close_stream") return true;
    if (waiting.size) return false;
    endIsKnown = new Promise((resolve) => setTimeout(resolve, 50));
    return true;
  };

  const goOn = async (response, again, controller) => {
    const encoder = new TextEncoder();
    for (let isOver = false; !isOver; response = isOver ? response : await again()) {
      isOver = true;
      let rest = "";
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        const events = (rest + part.value).split("\n\n");
        rest = events.pop();
        for (const event of events) {
          if (isForPage(JSON.parse(event.replace(/^data: ?/, "")))) controller.enqueue(encoder.encode(`${event}\n\n`));
          else isOver = false;
        }
      }
    }
    controller.close();
  };

  window.fetch = async (resource, options) => {
    const request = resource instanceof Request ? resource : null;
    const url = request ? request.url : String(resource);
    const response = await fetchOnce(resource, options);
    if (response.ok && url.includes("/queue/join")) {
      const { event_id: id } = await response.clone().json();
      if (!answeredEarly.delete(id)) waiting.add(id);
      await endIsKnown;
    }
    if (!response.ok || !url.includes("/queue/data")) return response;
    const again = () => fetchOnce(url, request ? { headers: request.headers, signal: request.signal } : options);
    const start = (controller) => void goOn(response, again, controller).catch((error) => controller.error(error));
    return new Response(new ReadableStream({ start }), { status: response.status, headers: response.headers });
  };
})();
