// The sample browser of a report. Completions are untrusted text: they enter the page through textContent only.
"use strict";

const ROWS = 100; // problems shown initially
const COLOURS = [[247, 240, 235], [158, 196, 221], [0, 91, 150]]; // no sample right, half of them, all
const [INDEX, CORRECT, ANSWER, REASON, TOKENS, TRUNCATED, TEXT, GOLD] = [0, 1, 2, 3, 4, 5, 6, 7];

const byId = (id) => document.getElementById(id);

async function unpack(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

function element(tag, text, attributes = {}) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function shares(benchmark, problem) {
  return benchmark.right[problem].map((count, run) => (count === null ? null : count / benchmark.k[run]));
}

function describe(benchmark, problem) {
  const runShares = shares(benchmark, problem).filter((share) => share !== null);
  const [lowest, highest] = [Math.min(...runShares), Math.max(...runShares)];
  return { lowest, highest, spread: highest - lowest, mean: runShares.reduce((sum, share) => sum + share, 0) / runShares.length };
}

const FILTERS = {
  all: () => true,
  differ: (facts) => facts.spread >= 0.5,
  none: (facts) => facts.highest === 0,
  every: (facts) => facts.lowest === 1,
};
const ORDERS = {
  file: () => 0,
  spread: (first, second) => second.facts.spread - first.facts.spread,
  hard: (first, second) => first.facts.mean - second.facts.mean,
};

function background(share) {
  const position = share * (COLOURS.length - 1);
  const below = Math.min(Math.floor(position), COLOURS.length - 2);
  const mixed = COLOURS[below].map((value, i) => Math.round(value + (COLOURS[below + 1][i] - value) * (position - below)));
  return `rgb(${mixed.join(", ")})`;
}

class Browser {
  constructor(data) {
    this.data = data;
    this.limit = ROWS;
    this.selected = null; // [benchmark, problem, run]
    for (const [index, benchmark] of data.benchmarks.entries()) {
      byId("benchmark").append(element("option", `${benchmark.name} (${benchmark.problems.length})`, { value: index }));
    }
    const redraw = () => { this.limit = ROWS; this.draw(); };
    for (const id of ["benchmark", "filter", "order"]) byId(id).addEventListener("change", redraw);
    byId("search").addEventListener("input", redraw);
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
    byId("more").addEventListener("click", () => { this.limit = Infinity; this.draw(); });
    byId("grid").addEventListener("click", (event) => this.select(event.target.closest("td[data-run]")));
    byId("grid").addEventListener("keydown", (event) => this.onKey(event));
    byId("reading").addEventListener("keydown", (event) => { if (event.key === "Escape") this.current()?.focus(); });
    byId("controls").hidden = byId("browse").hidden = false;
    this.draw();
  }

  get benchmark() { return this.data.benchmarks[Number(byId("benchmark").value)]; }

  samples(problem, run) { return this.data.samples[`${this.data.benchmarks.indexOf(this.benchmark)}.${problem}.${run}`]; }

  matches(problem, query) {
    if (!query) return true;
    const [id, question, gold] = this.benchmark.problems[problem];
    const answers = this.data.runs.flatMap((_, run) => (this.samples(problem, run) ?? []).map((sample) => sample[ANSWER]));
    return [id, question, gold, ...answers].some((text) => text && text.toLowerCase().includes(query));
  }

  visibleProblems() {
    const query = byId("search").value.trim().toLowerCase();
    return this.benchmark.problems
      .map((_, problem) => ({ problem, facts: describe(this.benchmark, problem) }))
      .filter(({ problem, facts }) => FILTERS[byId("filter").value](facts) && this.matches(problem, query))
      .sort(ORDERS[byId("order").value]);
  }

  draw() {
    const visible = this.visibleProblems();
    const table = element("table", undefined, { role: "grid", "aria-label": `Right samples by problem and run, ${this.benchmark.name}` });
    const head = table.createTHead().insertRow();
    head.append(element("th", "Problem", { class: "problem", scope: "col" }));
    for (const run of this.data.runs) {
      const cell = element("th", undefined, { scope: "col", title: run.name });
      cell.append(element("span", run.label));
      head.append(cell);
    }
    const body = table.createTBody();
    for (const { problem } of visible.slice(0, this.limit)) this.drawRow(body.insertRow(), problem);
    byId("grid").replaceChildren(table);
    byId("count").textContent = `${visible.length} of ${this.benchmark.problems.length} problems of ${this.benchmark.name}`;
    byId("more").hidden = visible.length <= this.limit;
    byId("more").textContent = `Show all ${visible.length} problems`;
    (this.current() ?? table.querySelector("td[data-run]"))?.setAttribute("tabindex", "0");
    this.mark();
  }

  drawRow(row, problem) {
    const [id, question] = this.benchmark.problems[problem];
    row.append(element("th", `${problem + 1}  ${(question ?? id).slice(0, 80)}`, { class: "problem", scope: "row", title: (question ?? id).slice(0, 400) }));
    for (const [run, share] of shares(this.benchmark, problem).entries()) {
      const cell = row.insertCell();
      if (share === null) {
        cell.textContent = "-";
        cell.className = "none";
        continue;
      }
      const count = this.benchmark.right[problem][run];
      cell.textContent = count;
      cell.style.backgroundColor = background(share);
      cell.style.color = share > 0.8 ? "#fff" : "#1c1e21";
      Object.assign(cell.dataset, { problem, run });
      cell.setAttribute("tabindex", "-1");
      cell.setAttribute("aria-label", `problem ${problem + 1}, ${this.data.runs[run].label}: ${count} of ${this.benchmark.k[run]} right`);
    }
  }

  current() {
    if (!this.selected || this.data.benchmarks[this.selected[0]] !== this.benchmark) return null;
    return byId("grid").querySelector(`td[data-problem="${this.selected[1]}"][data-run="${this.selected[2]}"]`);
  }

  mark() {
    for (const cell of byId("grid").querySelectorAll("[aria-selected]")) cell.removeAttribute("aria-selected");
    this.current()?.setAttribute("aria-selected", "true");
  }

  focus(cell) {
    if (!cell?.dataset.run) return;
    for (const previous of byId("grid").querySelectorAll('td[tabindex="0"]')) previous.setAttribute("tabindex", "-1");
    cell.setAttribute("tabindex", "0");
    cell.focus();
  }

  onKey(event) {
    const cell = event.target.closest("td[data-run]");
    if (!cell) return;
    const rows = [...cell.closest("tbody").rows];
    const [down, right] = [rows.indexOf(cell.parentElement), cell.cellIndex];
    const next = {
      ArrowUp: () => rows[down - 1]?.cells[right],
      ArrowDown: () => rows[down + 1]?.cells[right],
      ArrowLeft: () => rows[down].cells[right - 1],
      ArrowRight: () => rows[down].cells[right + 1],
      Home: () => rows[down].cells[1],
      End: () => rows[down].cells[rows[down].cells.length - 1],
    }[event.key];
    if (next) this.focus(next());
    else if (event.key === "Enter" || event.key === " ") { this.select(cell); byId("reading").focus(); }
    else return;
    event.preventDefault();
  }

  select(cell) {
    if (!cell) return;
    this.selected = [Number(byId("benchmark").value), Number(cell.dataset.problem), Number(cell.dataset.run)];
    this.mark();
    this.focus(cell);
    this.read(this.selected[1], this.selected[2]);
  }

  read(problem, run) {
    const { name, label } = this.data.runs[run];
    const [id, question, gold] = this.benchmark.problems[problem];
    const samples = this.samples(problem, run);
    const facts = element("dl");
    const fact = (term, text) => facts.append(element("dt", term), element("dd", text));
    fact("Question", question ?? "not stored with these runs");
    fact("Gold", gold ?? samples?.[0]?.[GOLD] ?? "not stored with these runs");
    fact("Run", name);
    fact("Right", `${this.benchmark.right[problem][run]} of ${this.benchmark.k[run]}`);
    const parts = [element("h3", `${this.benchmark.name}, problem ${problem + 1} (${id}): ${label}`), facts];
    if (samples) parts.push(...samples.map(completion));
    else parts.push(element("p", `This page does not hold the completions of this cell. They are in ${name}/eval/${this.benchmark.name}.jsonl.`, { class: "soft" }));
    if (samples && samples.length < this.benchmark.k[run]) {
      parts.push(element("p", `${this.benchmark.k[run] - samples.length} further samples are in ${name}/eval/${this.benchmark.name}.jsonl.`, { class: "soft" }));
    }
    byId("reading").replaceChildren(...parts);
    byId("reading").scrollTop = 0;
  }
}

function completion(sample) {
  const article = element("article", undefined, { class: "sample" });
  const line = element("div");
  line.append(element("span", sample[CORRECT] ? "right" : "wrong", { class: `verdict ${sample[CORRECT] ? "right" : "wrong"}` }));
  const answer = sample[ANSWER] === null ? "no answer" : `answer ${sample[ANSWER]}`;
  const cut = sample[TRUNCATED] ? ", cut off at the limit" : "";
  const reason = sample[CORRECT] || sample[REASON] === "wrong" ? "" : ` (${sample[REASON]})`;
  line.append(`${reason} · ${answer} · ${sample[TOKENS].toLocaleString("en")} tokens${cut} · sample ${sample[INDEX]}`);
  const text = element("pre");
  if (Array.isArray(sample[TEXT])) {
    const [head, missing, tail] = sample[TEXT];
    text.append(head, element("span", `… ${missing.toLocaleString("en")} characters omitted …`, { class: "cut" }), tail);
  } else {
    text.textContent = sample[TEXT];
  }
  article.append(line, text);
  return article;
}

(async () => {
  if (typeof DecompressionStream === "undefined") {
    byId("count").textContent = "This browser cannot unpack the samples (it has no DecompressionStream).";
    return;
  }
  window.browser = new Browser(await unpack(byId("samples").textContent.trim()));
})();
