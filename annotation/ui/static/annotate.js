// The Annotate tab. The page is a client of the app's own endpoints (annotation/ui/annotate/api.py): it shows the next
// item at once and sends responses in the background; what the server has not acknowledged is
// kept in the browser, and comes back to the annotator if it could not be saved. Runs as gr.HTML's js_on_load,
// where `element` is the component.

const AHEAD = 2; // items held: the one shown and the next one
const POLL = 1500; // milliseconds between two looks whether the model's answer is there
const EMPTY_POLL = 20000; // and whether an empty queue has been filled
const PAUSE = 120000; // a longer pause does not count as time spent on an item
const RETRIES = [1000, 2000, 4000]; // milliseconds before a request that did not get through is sent again
const KEPT = 7 * 24 * 3600 * 1000; // milliseconds that an unfinished draft is kept
const UNDOABLE = 50;
const DEAF = 800; // milliseconds in which keys do nothing, see deafUntil

const root = element.querySelector(".annotate");
const part = (name) => root.querySelector(`[data-part="${name}"]`);
const options = { order: part("order"), pool: part("pool"), blind: part("blind") };

let person = null;
let current = null; // the entry on show
let upcoming = []; // entries held for later
let history = []; // what U takes back, newest last: {item, submission, skipped, said}
let work = Promise.resolve(); // requests that change something go one after the other
let underWay = new Set(); // items that are being saved or skipped
let started = false;
let deafUntil = 0; // keys meant for the next item do nothing to one that comes back because saving failed

// --- the server -----------------------------------------------------------------------------

class Refused extends Error {} // the server's sentence says why; sending it again would not help

async function call(name, ...data) {
  const { root: base = "", api_prefix: prefix = "/gradio_api" } = window.gradio_config ?? {};
  const body = JSON.stringify({ data });
  const response = await fetch(`${base}${prefix}/run/${name}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body,
    keepalive: body.length < 60000, // goes through even if the page is closed meanwhile
  });
  if (response.status === 401)
    throw new Refused("You are signed out. Sign in again in another tab, then go on here: nothing is lost.");
  if ([502, 503, 504].includes(response.status)) throw new Error("The server is away.");
  const answer = await response.json();
  if (!response.ok || "error" in answer)
    throw new Refused(answer.error ?? "Something unexpected went wrong; the app's log says more.");
  return answer.data[0];
}

async function callPatiently(name, ...data) {
  for (let tried = 0; ; tried++) {
    try {
      const answer = await call(name, ...data);
      if (tried) tell("");
      return answer;
    } catch (error) {
      if (error instanceof Refused) throw error;
      if (tried === RETRIES.length)
        throw new Refused("The server cannot be reached. Check the connection, then try again.");
      tell("The server cannot be reached; trying again …");
      await new Promise((resolve) => setTimeout(resolve, RETRIES[tried]));
    }
  }
}

function afterwards(step) {
  work = work.then(step).catch((error) => {
    tell(error instanceof Refused ? error.message : "Something unexpected went wrong; reload the page.");
    if (!(error instanceof Refused)) console.error(error);
  });
  return work;
}

// --- items ------------------------------------------------------------------------------------

function entryOf(view) {
  const image = new Image();
  image.alt = view.prompt ? `Image for the prompt: ${view.prompt}` : "The image to judge";
  image.draggable = false;
  image.addEventListener("error", () =>
    tell("This image cannot be shown here; press S to leave it to somebody else."),
  );
  image.src = (window.gradio_config?.root ?? "") + view.image;
  const said = {};
  for (const { aspect } of view.aspects)
    said[aspect] = { score: null, scale: null, agrees: false, text: null, tags: [], comment: "", first: null };
  const entry = {
    view,
    image,
    said,
    active: 0,
    seconds: 0,
    token: newToken(),
    sent: null, // what has been sent under the token
    blind: options.blind.checked,
  };
  const draft = readDraft(view.item);
  if (draft) {
    for (const aspect of Object.keys(said)) Object.assign(said[aspect], draft.said[aspect]);
    entry.seconds = draft.seconds;
    entry.token = draft.token;
    entry.sent = draft.sent;
  }
  return entry;
}

const aspectOf = (entry, name) => entry.view.aspects.find(({ aspect }) => aspect === name);
const answerOf = (entry, name) => entry.view.model.aspects[name];
const scaleOf = (entry, name) => entry.said[name].scale ?? aspectOf(entry, name).scale;
const textOf = (entry, name) => entry.said[name].text ?? answerOf(entry, name)?.description ?? "";

async function refill(release = false) {
  const { order, pool, blind } = options;
  const taking = callPatiently("take", AHEAD, order.value, pool.value, blind.checked, release);
  const answer = await taking.catch((error) => {
    if (!current) root.classList.replace("loading", "refused");
    throw error;
  });
  if (person === null) begin(answer);
  showProgress(answer.progress);
  const known = new Map([current, ...upcoming].filter(Boolean).map((entry) => [entry.view.item, entry]));
  const held = answer.items
    .filter((view) => !underWay.has(view.item))
    .map((view) => {
      const entry = known.get(view.item);
      if (!entry) return entryOf(view);
      entry.view = view;
      return entry;
    });
  if (release && !held.includes(current)) current = null;
  upcoming = held.filter((entry) => entry !== current);
  if (current) refresh();
  else showNext();
}

function begin(answer) {
  person = answer.person;
  if (answer.blind_always) {
    options.blind.checked = options.blind.disabled = true;
    options.blind.closest("label").title = "This server always hides the model's answer first.";
  }
  const acknowledged = ({ skipped, submission }) => skipped || submission !== null;
  history = (remembered(() => sessionStorage, storageKey("history")) ?? []).filter(acknowledged);
  for (const { item, sending } of drafts()) if (sending) send(item, sending, null);
}

function showNext() {
  current = upcoming.shift() ?? null;
  show();
}

// --- drafts: what has been entered and is not acknowledged ---------------------------------------

const storageKey = (name) => `m3agiqa annotate ${person} ${name}`;

// A browser may forbid storage, or have no room left: that takes the safety net away, not the work.
function remember(area, key, value) {
  try {
    area().setItem(key, JSON.stringify(value));
  } catch {}
}

function remembered(area, key) {
  try {
    return JSON.parse(area().getItem(key));
  } catch {
    return null;
  }
}

function forget(key) {
  try {
    localStorage.removeItem(key);
  } catch {}
}

function keepDraft(entry, sending = null) {
  const { said, seconds, token, sent, view } = entry;
  const draft = { item: view.item, said, seconds, token, sent, sending, at: Date.now() };
  remember(() => localStorage, storageKey(view.item), draft);
}

const readDraft = (item) => remembered(() => localStorage, storageKey(item));
const dropDraft = (item) => forget(storageKey(item));

function drafts() {
  let keys = [];
  try {
    keys = Object.keys(localStorage).filter((key) => key.startsWith(storageKey("")));
  } catch {}
  const all = keys.map((key) => ({ key, ...remembered(() => localStorage, key) }));
  const isOld = ({ sending, at }) => !sending && Date.now() - at > KEPT;
  for (const { key } of all.filter(isOld)) forget(key);
  return all.filter((draft) => !isOld(draft));
}

function keepHistory() {
  history = history.slice(-UNDOABLE);
  remember(() => sessionStorage, storageKey("history"), history);
}

// --- saving, skipping, taking back ---------------------------------------------------------------

function payload(entry) {
  const { view, said } = entry;
  const given = view.aspects
    .filter(({ aspect }) => said[aspect].score !== null)
    .map(({ aspect, revision }) => {
      const { score, agrees, text, tags, comment } = said[aspect];
      const written = textOf(entry, aspect);
      // An empty field is no description, unless the model's was there and has been emptied.
      const description = written.trim() === "" && (text === null || !answerOf(entry, aspect)) ? null : written;
      return { aspect, score, scale: scaleOf(entry, aspect), agrees, description, tags, comment, revision };
    });
  const unchanged = ({ aspect, score }) => said[aspect].first === null || said[aspect].first === score;
  const shown = view.model.assessment ?? null;
  return [view.item, given, entry.token, shown, entry.seconds, entry.blind && given.every(unchanged)];
}

function save() {
  if (!current) return;
  const unscored = current.view.aspects.filter(({ aspect }) => current.said[aspect].score === null);
  if (unscored.length === current.view.aspects.length)
    return tell("Give a score first, or skip this image.");
  if (unscored.length && !current.partly) {
    current.partly = true;
    activate(current.view.aspects.indexOf(unscored[0]));
    return tell(`There is no score for ${unscored[0].aspect} yet. Save again to leave it out.`);
  }
  count();
  const entry = current;
  const given = JSON.stringify(payload(entry)[1]);
  if (entry.sent !== null && entry.sent !== given) entry.token = newToken(); // changed: another submission
  entry.sent = given;
  const data = payload(entry);
  keepDraft(entry, data);
  tell("");
  const record = { item: entry.view.item, submission: null, skipped: false, said: entry.said };
  history.push(record);
  send(entry.view.item, data, { entry, record });
  showNext();
}

function send(item, data, sent) {
  underWay.add(item);
  afterwards(async () => {
    try {
      const saved = await callPatiently("save", ...data);
      dropDraft(item);
      const numbers = Object.values(saved.corrections).map((number) => `#${number}`);
      report(`Saved as correction${numbers.length === 1 ? "" : "s"} ${numbers.join(", ")}`);
      if (sent) {
        sent.record.submission = saved.submission;
        keepHistory();
      }
    } catch (error) {
      await bringBack(item, sent, error);
    } finally {
      underWay.delete(item);
    }
    await refill();
  });
}

async function bringBack(item, sent, error) {
  if (!sent) {
    // Entered before the page was reloaded. It stays a draft, and shows when the item comes again.
    remember(() => localStorage, storageKey(item), { ...readDraft(item), sending: null });
    throw error;
  }
  const { entry, record } = sent;
  keepDraft(entry);
  entry.view = await call("look", item, entry.blind).catch(() => entry.view);
  giveBack(entry, record);
  throw new Refused(`Not saved: ${error.message}`);
}

function giveBack(entry, record) {
  record.failed = true;
  history = history.filter((other) => other !== record);
  if (isTyping(document.activeElement)) return upcoming.unshift(entry); // its turn comes after this one's
  deafUntil = Date.now() + DEAF;
  putBack(entry);
}

function putBack(entry) {
  if (current) upcoming.unshift(current);
  current = entry;
  show();
}

function skip() {
  if (!current) return;
  const { item } = current.view;
  const record = { item, submission: null, skipped: true, said: current.said };
  const entry = current;
  history.push(record);
  underWay.add(item);
  tell("");
  showNext();
  afterwards(async () => {
    try {
      await callPatiently("skip", item);
      report("Skipped");
      keepHistory();
    } catch (error) {
      giveBack(entry, record);
      throw error;
    } finally {
      underWay.delete(item);
    }
    await refill();
  });
}

function undo() {
  const record = history.pop();
  if (!record) return tell("There is nothing to take back.");
  afterwards(async () => {
    if (record.failed) return; // it is back already
    let view;
    try {
      view = await callPatiently("undo", record.item, record.submission, options.blind.checked);
    } catch (error) {
      history.push(record);
      throw error;
    }
    keepHistory();
    dropDraft(record.item);
    const entry = entryOf(view);
    for (const aspect of Object.keys(entry.said)) Object.assign(entry.said[aspect], record.said[aspect]);
    keepDraft(entry);
    tell("");
    report(record.skipped ? "Back at the image you skipped" : "Taken back: save it again");
    putBack(entry);
    await refill();
  });
}

// --- entering ------------------------------------------------------------------------------------

function score(name, value, scale = scaleOf(current, name)) {
  const [low, high] = scale;
  const rounded = Math.round(Math.min(Math.max(value, low), high) * 100) / 100;
  Object.assign(current.said[name], { score: rounded, scale, agrees: false });
  changed(name);
}

// In blind mode a score that stands lets the model's answer show, as soon as there is one.
async function reveal(entry, name) {
  const said = entry.said[name];
  if (!entry.blind || said.score === null || answerOf(entry, name)) return;
  const blindly = said.first ?? said.score;
  try {
    entry.view = await call("reveal", entry.view.item, name, blindly);
    if (!answerOf(entry, name)) return;
    said.first = blindly;
    keepDraft(entry);
    if (entry === current) refresh();
  } catch (error) {
    tell(error instanceof Refused ? error.message : "The model's answer cannot be fetched at the moment.");
  }
}

function agree(name) {
  const said = current.said[name];
  const answer = answerOf(current, name);
  if (!answer)
    return tell(
      current.blind && said.score === null
        ? "Blind: give your own score first, then the model's answer shows."
        : "The model has not said anything here yet.",
    );
  if (said.agrees) {
    Object.assign(said, { agrees: false, score: null, scale: null }, said.before);
  } else {
    said.before = { score: said.score, scale: said.scale, text: said.text };
    Object.assign(said, { agrees: true, score: answer.mos, scale: answer.scale, text: null });
  }
  changed(name);
}

function changed(name) {
  current.partly = false;
  tell("");
  keepDraft(current);
  update(name);
}

// --- showing ------------------------------------------------------------------------------------

function tell(sentence) {
  part("message").textContent = sentence;
}

function report(sentence) {
  part("report").textContent = sentence;
}

function showProgress({ mine, left, done, total, skipped }) {
  const bar = part("progress");
  bar.max = Math.max(total, 1);
  bar.value = done;
  part("mine").textContent = `${mine} by you`;
  part("left").textContent = `${left} ${left === 1 ? "image" : "images"} left for you`;
  part("all").textContent = `${done} of ${total} annotations in all`;
  part("all").title =
    "Every image counts once for each annotator that it needs." + (skipped ? ` You have skipped ${skipped}.` : "");
  part("empty-title").textContent = total ? "Nothing is waiting for you" : "The queue is empty";
  part("empty-text").textContent = !total
    ? "Add images below, or assess some in the Assess tab: they come here to be judged by people."
    : "You have seen everything that is free at the moment. Add images below, choose another kind of " +
      "images above, or come back when others have given something up.";
}

function show() {
  root.classList.toggle("without-item", !current);
  root.classList.remove("loading", "refused", "zoomed");
  part("figure").replaceChildren(...(current ? [current.image] : []));
  part("prompt").textContent = current ? (current.view.prompt ?? "No prompt is known for this image.") : "";
  part("prompt").classList.toggle("unknown", !current?.view.prompt);
  part("aspects").replaceChildren(...(current ? current.view.aspects.map(({ aspect }) => card(aspect)) : []));
  root.dataset.item = current?.view.item ?? "";
  if (!current) return;
  if (part("figure").getBoundingClientRect().top < 0) root.scrollIntoView(); // on a phone
  lastActive = Date.now();
  activate(current.active);
  refresh();
  tellIfSeen();
  revealScored();
}

function tellIfSeen() {
  const known = ({ aspect }) => answerOf(current, aspect) && current.said[aspect].first === null;
  if (current?.blind && current.view.aspects.some(known))
    tell("You have seen the model's answer to this one before; it does not count as blind.");
}

function revealScored() {
  for (const { aspect } of current.view.aspects) reveal(current, aspect);
}

function card(name) {
  const article = root.querySelector(`template[data-for="${name}"]`).content.firstElementChild.cloneNode(true);
  const form = article.querySelector("form");
  const said = current.said[name];
  fillTags(form, said.tags);
  form.elements.comment.value = said.comment;
  form.elements.score.addEventListener("click", ({ target }) => {
    if (current.said[name].score === null) score(name, Number(target.value)); // where it stood out of sight
  });
  form.elements.score.addEventListener("change", () => reveal(current, name)); // not while it is being dragged
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", ({ target }) => {
    const { description, score: given, tags, comment } = readForm(form);
    if (target.name === "score") return score(name, given);
    if (target.name === "description") Object.assign(said, { text: description, agrees: false });
    else Object.assign(said, { tags, comment });
    changed(name);
  });
  for (const [index, button] of article.querySelectorAll(".key").entries())
    button.addEventListener("click", () => press(name, index));
  article.querySelector(".agree").addEventListener("click", () => agree(name));
  article.addEventListener("click", () => activate(indexOf(name))); // not before: what is pressed must not move away
  article.addEventListener("focusin", ({ target }) => isTyping(target) && activate(indexOf(name)));
  return article;
}

const indexOf = (name) => current.view.aspects.findIndex(({ aspect }) => aspect === name);

function press(name, index) {
  const { keys, scale } = aspectOf(current, name);
  score(name, keys[index], scale);
  reveal(current, name);
}

function activate(index) {
  current.active = index;
  for (const section of part("guideline").children) section.hidden = section.dataset.for !== activeName();
  part("aspects")
    .querySelectorAll(".aspect")
    .forEach((article, position) => {
      article.classList.toggle("active", position === index);
      if (position === index) article.setAttribute("aria-current", "true");
      else article.removeAttribute("aria-current");
    });
}

function refresh() {
  for (const { aspect } of current.view.aspects) update(aspect);
}

function update(name) {
  const article = part("aspects").querySelector(`[data-aspect="${name}"]`);
  const form = article.querySelector("form");
  const { score: given, agrees } = current.said[name];
  const { keys } = aspectOf(current, name);
  const [low, high] = scaleOf(current, name);
  const answer = answerOf(current, name);
  article.classList.toggle("scored", given !== null);
  article.querySelectorAll(".key").forEach((button, index) => {
    button.textContent = keys[index];
    button.setAttribute("aria-pressed", given !== null && !agrees && keys[index] === given);
  });
  const { score: slider, description: text } = form.elements;
  Object.assign(slider, { min: low, max: high, step: high - low > 10 ? 1 : 0.1 });
  slider.value = given ?? low; // while nothing is given, no thumb is shown (annotate.css)
  slider.setAttribute("aria-valuetext", given === null ? "not scored yet" : `${given.toFixed(1)} of ${high}`);
  form.querySelector("output").textContent = given === null ? "–" : given.toFixed(1);
  const agreement = article.querySelector(".agree");
  agreement.setAttribute("aria-pressed", agrees);
  agreement.disabled = !answer;
  const written = textOf(current, name);
  if (text.value !== written) text.value = written;
  text.placeholder = waiting(name, answer);
  const label = article.querySelector(".model-score");
  label.replaceChildren(...(answer ? modelScore(answer) : []));
  label.title = answer ? `Said by ${current.view.model.title}` : "";
}

function modelScore({ rating, mos }) {
  const word = Object.assign(document.createElement("span"), { className: `rating ${rating}`, textContent: rating });
  const score = Object.assign(document.createElement("span"), { textContent: `model ${mos.toFixed(1)}` });
  return [word, score];
}

function waiting(name, answer) {
  const { state, message } = current.view.model;
  if (answer) return "Your description";
  if (current.blind && current.said[name].score === null)
    return "Blind: score first, then the model's description shows.";
  if (state === "coming") return "The model is still looking; score already, its description comes here.";
  if (state === "failed") return `${message} Score without it; you may write a description.`;
  return "The model says nothing about this. You may write a description.";
}

// --- time -----------------------------------------------------------------------------------------

let lastActive = Date.now();

function count() {
  const now = Date.now();
  if (current && now - lastActive < PAUSE) current.seconds += (now - lastActive) / 1000;
  lastActive = now;
}

const onShow = () => root.offsetParent !== null && !document.hidden;

function poll() {
  setTimeout(poll, POLL);
  if (!onShow()) return;
  const isComing = (one) => one?.view.model.state === "coming";
  if (!isComing(current)) {
    if (upcoming.some(isComing)) afterwards(() => refill()); // not `look`, which is for what is on the screen
    return;
  }
  const entry = current;
  call("look", entry.view.item, entry.blind)
    .then((view) => {
      entry.view = view;
      if (entry !== current) return;
      refresh();
      if (view.model.state === "ready") revealScored();
    })
    .catch(() => {}); // the next look will tell, and so does saving
}

// --- keys and buttons -------------------------------------------------------------------------------

// What each key does, but 1 to 5, which give a score (onKey); annotate/tab.py lists them for people.
const KEYS = {
  Enter: save,
  s: skip,
  u: undo,
  a: () => agree(activeName()),
  e: () => field("description"),
  c: () => field("comment"),
  z: () => zoom(),
  g: () => part("guideline").toggleAttribute("hidden"),
  Escape: () => part("guideline").toggleAttribute("hidden", true),
  ArrowDown: () => move(1),
  ArrowUp: () => move(-1),
  ArrowRight: () => nudge(0.1),
  ArrowLeft: () => nudge(-0.1),
};

const activeName = () => current.view.aspects[current.active].aspect;

function move(step) {
  const last = current.view.aspects.length - 1;
  activate(Math.min(Math.max(current.active + step, 0), last));
  if (document.activeElement?.closest(".aspect")) root.focus({ preventScroll: true });
}

function nudge(step) {
  const given = current.said[activeName()].score;
  if (given !== null) score(activeName(), given + step);
}

function field(name) {
  part("aspects").querySelector(`.aspect.active [name=${name}]`).focus();
}

// As large as the image is, but at least twice as large as before; what was clicked comes to the middle.
function zoom({ clientX, clientY } = {}) {
  const picture = part("figure");
  const box = picture.getBoundingClientRect();
  const { width, height } = current.view;
  const fitting = Math.min(box.width / width, box.height / height);
  const scale = Math.max(1, 2 * fitting);
  picture.style.setProperty("--zoomed", `${scale * width}px`);
  if (!root.classList.toggle("zoomed")) return;
  const [x, y] = clientX ? [clientX - box.left - box.width / 2, clientY - box.top - box.height / 2] : [0, 0];
  picture.scrollTo({
    left: (scale * width - box.width) / 2 + (x * scale) / fitting,
    top: (scale * height - box.height) / 2 + (y * scale) / fitting,
  });
}

// Where a layout has no Latin letters, or digits with Shift alone, the place on the keyboard counts.
function keyOf({ key, code }) {
  if (/^[1-5]$/.test(key) || key.length > 1) return key;
  const [, digit, letter] = /^(?:Digit([1-5])|Key([A-Z]))$/.exec(code) ?? [];
  return digit ?? (/^[a-z]$/i.test(key) ? key : (letter ?? key)).toLowerCase();
}

const isTyping = (target) => root.contains(target) && target.matches("textarea, [type=text], select");

// Also on the tab's other buttons, such as Import, which keep the focus.
const takesKeys = (target) =>
  target === document.body || root.contains(target) || Boolean(target.closest("[role=tabpanel] button"));

function onKey(event) {
  if (!onShow() || event.isComposing || !takesKeys(event.target)) return;
  count();
  if (isTyping(event.target)) {
    if (event.key === "Escape") root.focus({ preventScroll: true });
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
    else return;
    event.preventDefault();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter" && event.target.matches("button")) return; // presses that button
  const key = keyOf(event);
  const moves = event.target.matches("[type=range]") && ["ArrowLeft", "ArrowRight"].includes(key);
  if (moves && event.target.closest(".scored")) return; // the slider's own keys, once it stands somewhere
  if (!(key in KEYS) && !/^[1-5]$/.test(key)) return;
  event.preventDefault();
  if ((!current && key !== "u") || Date.now() < deafUntil) return;
  if (/^[1-5]$/.test(key)) press(activeName(), Number(key) - 1);
  else if (!event.repeat || key.startsWith("Arrow")) KEYS[key]();
}

document.addEventListener("keydown", onKey);
for (const kind of ["pointerdown", "input"]) root.addEventListener(kind, count);
root.addEventListener("click", (event) => {
  // A button that was clicked would keep the focus, and Enter would press it again instead of saving.
  if (event.detail && event.target.closest("button, .chip")) root.focus({ preventScroll: true });
});
part("figure").addEventListener("click", zoom);
part("save").addEventListener("click", save);
part("skip").addEventListener("click", skip);
part("undo").addEventListener("click", undo);
part("again").addEventListener("click", () => afterwards(() => refill()));

// --- options ----------------------------------------------------------------------------------------

const OPTIONS = "m3agiqa annotate options";
const wanted = remembered(() => localStorage, OPTIONS) ?? {};
if (wanted.order) options.order.value = wanted.order;
if (wanted.pool) options.pool.value = wanted.pool;
options.blind.checked = wanted.blind ?? false;

function choose(event) {
  const { order, pool, blind } = options;
  remember(() => localStorage, OPTIONS, { order: order.value, pool: pool.value, blind: blind.checked });
  for (const entry of [current, ...upcoming].filter(Boolean)) entry.blind = blind.checked;
  tell("");
  afterwards(async () => {
    await refill(event.target !== blind);
    tellIfSeen();
  });
  root.focus({ preventScroll: true });
}

for (const option of Object.values(options)) option.addEventListener("change", choose);

// --- beginning --------------------------------------------------------------------------------------

function fit() {
  if (onShow()) root.style.setProperty("--top", `${root.getBoundingClientRect().top + window.scrollY}px`);
}

function appear() {
  fit();
  root.focus({ preventScroll: true });
  if (started) return;
  started = true;
  afterwards(() => refill());
  setTimeout(poll, POLL);
  setInterval(() => {
    if (!current && onShow()) afterwards(() => refill());
  }, EMPTY_POLL);
}

new IntersectionObserver(([seen]) => seen.isIntersecting && appear()).observe(root);
window.addEventListener("resize", fit);
new ResizeObserver(fit).observe(document.querySelector("#model")); // which may have more to say than before
document.addEventListener("m3agiqa-queue", () => afterwards(() => refill())); // images have been added
