// Everything that comes from outside goes through textContent: none of it can become markup.
"use strict";

const EVERY_MS = 2000;
const SOON_MS = 400;
// After so long without an answer what is shown is no longer how things are.
const ANSWER_MS = 10000;
// Once no broker has answered for this long, pools are shown as they were: as in `shunter top`.
const UNANSWERED_S = 2;
// Groups that hold something are all shown; those that something left of late up to this many.
const GROUPS_SHOWN = 10;
const NONE = "–";
const get = (id) => document.getElementById(id);

function make(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const whole = (value) => (isNumber(value) ? value.toLocaleString("en") : NONE);
const percent = (value) => (isNumber(value) ? `${value === 1 ? 100 : (100 * value).toFixed(1)} %` : NONE);
const usd = (value) => (isNumber(value) ? `$${value.toFixed(Math.abs(value) < 1 ? 4 : 2)}` : NONE);

// A page stays open for days: a time of another day has its date.
function clock(at) {
  const told = new Date(at * 1000);
  const time = told.toLocaleTimeString("en-GB");
  return told.toDateString() === new Date().toDateString() ? time : `${told.toLocaleDateString("sv")} ${time}`;
}

function rate(value) {
  return isNumber(value) ? value.toFixed(value < 10 ? 2 : 1) : NONE;
}

function duration(seconds) {
  if (!isNumber(seconds)) return NONE;
  const size = Math.abs(seconds);
  if (size < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (size < 99.5) return `${seconds.toFixed(size < 9.95 ? 2 : 1)} s`;
  return size < 5940 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function counts(found) {
  const told = Object.entries(found).map(([name, count]) => `${name} ${whole(count)}`);
  return told.join(", ") || NONE;
}

// Whoever has a link of it in focus, or marks some of it, keeps it as it is until they are done.
function isInUse(table) {
  const marked = getSelection();
  const isMarked = !marked.isCollapsed && table.contains(marked.anchorNode);
  return isMarked || table.contains(document.activeElement);
}

// A column is [heading, kind, cell]; kind is "head", "text", "text wide", which a narrow screen
// leaves out, or "" for figures.
function draw(id, columns, rows, none) {
  const table = get(id);
  if (isInUse(table)) return;
  const head = make("tr");
  for (const [heading, kind] of columns) {
    const cell = make("th", heading, kind === "head" ? "text" : kind);
    cell.scope = "col";
    head.append(cell);
  }
  const body = make("tbody");
  for (const row of rows) {
    const line = make("tr");
    for (const [, kind, content] of columns) {
      const found = content(row);
      const cell = make(kind === "head" ? "th" : "td", null, kind === "head" ? "text" : kind);
      if (kind === "head") cell.scope = "row";
      cell.append(...(Array.isArray(found) ? found : [found ?? NONE]));
      line.append(cell);
    }
    body.append(line);
  }
  if (!rows.length) {
    const cell = make("td", none, "none");
    cell.colSpan = columns.length;
    const line = make("tr");
    line.append(cell);
    body.append(line);
  }
  const top = make("thead");
  top.append(head);
  table.replaceChildren(top, body);
}

function meter(share, label) {
  const found = make("meter");
  found.min = 0;
  found.max = 1;
  found.value = Math.min(1, share);
  found.setAttribute("aria-label", label);
  return found;
}

function link(id) {
  const found = make("a", id);
  found.href = `/?id=${encodeURIComponent(id)}`;
  return found;
}

function state(pool) {
  const words = { up: "up", draining: "draining", none: "no worker", misfit: "misfit" };
  const className = { up: "good", draining: "warn", none: "bad", misfit: "bad" }[pool.state];
  const many = pool.workers > 1 ? ` ×${pool.workers}` : "";
  return [make("span", (words[pool.state] ?? pool.state) + many, className)];
}

function circuit(pool) {
  const open = Object.entries(pool.circuits);
  if (pool.state === "none") return NONE;
  const found = [...open.map(([variant, how]) => `${how}: ${variant}`), ...pool.drifted.map((variant) => `drifted: ${variant}`)];
  return found.length ? [make("span", found.join(", "), "bad")] : "closed";
}

function speed(pool) {
  const found = Object.values(pool.speed);
  if (!found.length) return NONE;
  const [low, high] = [Math.min(...found).toFixed(2), Math.max(...found).toFixed(2)];
  return low === high ? `×${low}` : `×${low}–${high}`;
}

const POOLS = [
  ["pool", "head", (p) => p.pool],
  ["device", "text wide", (p) => (p.assumed ? `${p.device}, assumed` : p.device)],
  ["state", "text", state],
  ["busy", "", (p) => (isNumber(p.busy) ? [meter(p.busy, `device time of ${p.pool} in use`), percent(p.busy)] : NONE)],
  ["runs / slots", "", (p) => `${whole(p.running)} / ${whole(p.slots)}`],
  ["queued", "", (p) => whole(p.queued)],
  ["backlog", "", (p) => duration(p.backlog_s)],
  ["speed", "", speed],
  ["cached", "", (p) => (isNumber(p.cached_share) ? percent(p.cached_share) : NONE)],
  ["breaker", "text", circuit],
  ["direct", "", (p) => whole(p.direct)],
  ["batch", "", (p) => whole(p.batch)],
  ["req/s", "", (p) => rate(p.per_s)],
  ["$/h", "", (p) => usd(p.usd_per_hour)],
  ["$ in all", "", (p) => usd(p.total_usd)],
];

function kept(workload) {
  const share = workload.attainment;
  if (!isNumber(share)) return NONE;
  const className = share >= 0.99 ? "good" : share >= 0.9 ? "warn" : "bad";
  return [make("span", percent(share), className)];
}

const CLASSES = [
  ["class", "head", (c) => c.task],
  ["ended/s", "", (c) => rate(c.per_s)],
  ["ended", "", (c) => whole(c.ended)],
  ["SLO kept", "", kept],
  ["TTFT p50", "", (c) => duration(c.ttft_p50_s)],
  ["p99", "", (c) => duration(c.ttft_p99_s)],
  ["end to end p50", "", (c) => duration(c.finish_p50_s)],
  ["p99", "", (c) => duration(c.finish_p99_s)],
  ["no answer", "", (c) => whole(c.without_answer)],
  ["ended in all", "", (c) => whole(c.total_ended)],
  ["SLO kept in all", "", (c) => percent(c.total_attainment)],
];

function release(hold) {
  if (!isNumber(hold.release_in_s)) return NONE;
  return hold.release_in_s >= 0 ? `in ${duration(hold.release_in_s)}` : `due for ${duration(-hold.release_in_s)}`;
}

// What the members of a group have in common, beside the model.
function alike(hold) {
  const parts = [hold.operation];
  if (isNumber(hold.prompt_tokens_max)) parts.push(`≤${whole(hold.prompt_tokens_max)} tokens`);
  if (!hold.is_batch) parts.push("waits for a pool");
  for (const [name, value] of Object.entries(hold.constraints)) {
    const told = Array.isArray(value) ? value.join(" ") : name === "labels" ? Object.entries(value).flat().join(" ") : String(value);
    parts.push(`${name.replaceAll("_", " ")} ${told}`);
  }
  return parts.join(" · ");
}

const HOLDS = [
  ["group", "head", (h) => [h.model, " ", make("span", alike(h), "soft")]],
  ["held", "", (h) => whole(h.held)],
  ["of a full batch", "", (h) => [meter(h.fill, "fill"), `${percent(h.fill)} of ${whole(h.full)}`]],
  ["oldest", "", (h) => duration(h.oldest_s)],
  ["goes, at the latest", "", release],
  ["released", "", (h) => whole(h.released)],
  ["batches", "", (h) => whole(h.batches)],
  ["mean size", "", (h) => (h.batches ? (h.released / h.batches).toFixed(1) : NONE)],
  ["because of", "text", (h) => counts(h.reasons)],
];

const FALLBACKS = [
  ["when", "text", (f) => clock(f.at)],
  ["request", "head", (f) => [link(f.request_id)]],
  ["from → to", "text", (f) => `${f.from_pool} → ${f.to_pool ?? "…"}`],
  ["reason", "text", (f) => f.reason],
];

const ENDS = [
  ["", "head", (e) => e[0]],
  ["of late", "", (e) => whole(e[1])],
  ["in all", "", (e) => whole(e[2])],
];

function ends(view) {
  const [late, all] = [view.ended, view.ended_total];
  const rows = [];
  const add = (words, of) => {
    for (const name of Object.keys(of(all))) rows.push([words(name), of(late)[name] ?? 0, of(all)[name]]);
  };
  add((name) => name, (e) => e.statuses);
  add((name) => `refused: ${name}`, (e) => e.refusals);
  add((name) => `dead letter: ${name}`, (e) => e.dead_letters);
  if (all.duplicates) rows.push(["duplicate", late.duplicates, all.duplicates]);
  return rows;
}

function tiles(view) {
  const { money, ended, holds } = view;
  const saved = money.saving;
  const compared = isNumber(saved) ? `spent ${percent(Math.abs(saved))} ${saved >= 0 ? "less" : "more"}, for ${whole(money.compared)} requests` : "nothing to compare";
  const lost = ended.requests - (ended.statuses.completed ?? 0);
  const shown = [
    ["Ended", `${rate(ended.per_s)} /s`, `${whole(view.ended_total.requests)} since ${clock(view.since)}`],
    ["Without an answer", whole(lost), `of ${whole(ended.requests)}`],
    ["Held", whole(holds.held), `in ${whole(holds.groups.filter((h) => h.held).length)} groups`],
    ["Spent", `${usd(money.usd_per_hour)} /h`, `${usd(view.money_total.usd)} in all`],
    ["The same on premium GPUs", money.compared ? `${usd(money.premium_estimate_usd_per_hour)} /h` : "–", compared],
    ["Fallbacks", whole(view.pools.reduce((sum, p) => sum + p.fallbacks, 0)), `${whole(view.pools.reduce((sum, p) => sum + p.total_fallbacks, 0))} in all`],
  ];
  get("tiles").replaceChildren(
    ...shown.map(([label, figure, more]) => {
      const tile = make("div");
      tile.append(make("dt", label), make("dd", figure), make("dd", more, "more"));
      return tile;
    }),
  );
}

function show(view) {
  tiles(view);
  draw("pools", POOLS, view.pools, "The fleet declares no pool.");
  draw("classes", CLASSES, view.classes, "Nothing has ended yet.");
  const groups = view.holds.groups.filter((hold, n) => hold.held || n < GROUPS_SHOWN);
  draw("holds", HOLDS, groups, "Nothing is held.");
  draw("fallbacks", FALLBACKS, view.fallbacks.slice(0, 12), "None.");
  draw("ends", ENDS, ends(view), "None yet.");
  const notes = [
    `Rates, shares and quantiles are of the last ${duration(view.window.s)}; “in all” counts from ${clock(view.since)}.`,
    "On premium GPUs: the same tokens on the cheapest that might have served each request, shared by as many at a time.",
  ];
  if (view.unreadable) notes.push(`${whole(view.unreadable)} records could not be read.`);
  if (view.holds.left_out) notes.push(`${whole(view.holds.left_out)} held requests are beyond what this view remembers.`);
  get("notes").textContent = notes.join(" ");
}

// Read out by screen readers, so it changes only where there is something new to say.
function say(text, isWarning) {
  if (get("status").textContent !== text) get("status").textContent = text;
  get("status").className = isWarning ? "warn" : "";
}

let isPaused = false;
let timer = 0;

async function refresh() {
  clearTimeout(timer);
  if (isPaused || document.hidden) return;
  let wait = EVERY_MS;
  try {
    const response = await fetch("/view.json", { signal: AbortSignal.timeout(ANSWER_MS) });
    const view = await response.json();
    if (!response.ok) throw new Error(view.error);
    if (isPaused) return;
    show(view);
    const isSilent = view.is_current && view.silent_s > 10;
    if (!view.is_current) say("reads the topics …");
    else if (view.unanswered_s > UNANSWERED_S) say(`Kafka is away: pools as ${duration(view.unanswered_s)} ago`, true);
    else if (isSilent) say("no news from Kafka", true);
    else say("live");
    const since = isSilent ? `for ${duration(view.silent_s)}` : "";
    get("at").textContent = `${clock(view.at)} ${since}`;
    if (!view.is_current) wait = SOON_MS;
  } catch (error) {
    const isLate = error.name === "TimeoutError";
    if (!isPaused) say(`no view: ${isLate ? `no answer for ${ANSWER_MS / 1000} s` : error.message}`, true);
  }
  timer = setTimeout(refresh, wait);
}

function facts(found) {
  const list = make("dl", null, "facts");
  for (const [label, value] of found) list.append(make("dt", label), make("dd", value));
  return list;
}

function grid(found) {
  const table = make("table");
  const head = make("tr");
  found.headings.forEach((heading, n) => {
    const cell = make("th", heading, n < found.labels ? "text" : "");
    cell.scope = "col";
    head.append(cell);
  });
  const body = make("tbody");
  found.rows.forEach((row, index) => {
    const line = make("tr", null, index === found.chosen ? "chosen" : "");
    row.forEach((value, n) => {
      const mark = n === 0 && index === found.chosen ? "→ " : "";
      line.append(make("td", mark + value, n < found.labels ? "text" : ""));
    });
    body.append(line);
  });
  const top = make("thead");
  top.append(head);
  table.append(top, body);
  const box = make("div", null, "scroll");
  box.tabIndex = 0;
  box.append(table);
  return box;
}

const TONES = { executed: "good", placed: "", released: "", held: "warn", duplicate: "warn", cancelled: "warn", cancel_requested: "warn" };

function step(found) {
  const part = make("article");
  const heading = make("h3");
  heading.append(
    make("span", `${found.clock}  +${found.since_s.toFixed(3)} s`, "when"),
    make("strong", found.step, TONES[found.step] ?? "bad"),
  );
  if (found.reason) heading.append(`: ${found.reason}${found.words ? ` (${found.words})` : ""}`);
  part.append(heading, facts(found.facts));
  if (found.envelopes) part.append(grid(found.envelopes));
  if (found.candidates) part.append(grid(found.candidates));
  part.append(facts(found.origin));
  return part;
}

async function tellStory(id) {
  const section = get("story");
  section.hidden = false;
  get("id").value = id;
  get("story-heading").textContent = `Request ${id}`;
  get("told").replaceChildren(make("p", "looks for its evidence …", "soft"));
  let parts;
  try {
    const response = await fetch(`/story.json?id=${encodeURIComponent(id)}`);
    const found = await response.json();
    if (!response.ok) throw new Error(found.error);
    const { story } = found;
    parts = [facts(story.facts), ...story.steps.map(step)];
    if (story.versions) parts.push(facts([["versions", story.versions]]));
    if (!found.is_whole) parts.unshift(make("p", "The search ended before the request’s beginning: earlier steps may be missing. `shunter audit show` has all of them.", "warn"));
  } catch (error) {
    parts = [make("p", error.message, "warn")];
  }
  if (get("id").value === id) get("told").replaceChildren(...parts);
}

function follow() {
  const id = new URLSearchParams(location.search).get("id");
  if (id) tellStory(id.trim());
  else get("story").hidden = true;
}

get("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = get("id").value.trim();
  if (!id) return;
  history.pushState(null, "", `/?id=${encodeURIComponent(id)}`);
  follow();
  get("story").focus();
});
get("close").addEventListener("click", () => {
  history.pushState(null, "", "/");
  follow();
  get("id").focus();
});
get("pause").addEventListener("click", () => {
  isPaused = !isPaused;
  get("pause").setAttribute("aria-pressed", String(isPaused));
  get("pause").textContent = isPaused ? "Go on" : "Pause";
  if (isPaused) say("paused", true);
  refresh();
});
window.addEventListener("popstate", follow);
document.addEventListener("visibilitychange", refresh);
follow();
refresh();
