// The report's page. Data stand in JSON elements; an update's rollouts are parsed when they are looked at, and lists
// are shown a page at a time. Whatever a model wrote enters the page as text nodes only.
"use strict";

(() => {
  const COLORS = ["#3b86d1", "#d9822b", "#3fa36b", "#c25b97", "#8a6fd1", "#c9a227", "#5aa9a5", "#c2553d"];
  const PANELS = [/^val\/per_task\/mean/, /^train\/per_task$/, /^train\/loss$/, /^playbook\/size$/];
  const HEADLINES = [/^val\/per_/, /^train\/per_/, /^train\/loss$/, /^playbook\/(size|true_share)$/, /^teacher\/enriched/];
  const PAGE = 25, CARDS = 10, SUCCESS = 1;

  const read = id => JSON.parse(document.getElementById(id).textContent);
  const { runs, differing } = read("runs");
  const main = document.getElementById("main");
  const parsed = new Map();
  const promptsById = runs.map(run => new Map(run.prompts.map(prompt => [prompt.id, prompt])));
  let plots = [];

  // Elements

  function el(name, attributes = {}, ...children) {
    const svg = ["svg", "line", "circle", "title"].includes(name);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
    }
    return put(node, ...children);
  }

  function put(node, ...children) {
    node.append(...children.flat(3).filter(child => child !== null));
    return node;
  }

  const cell = (value, kind) => el("td", kind ? { class: kind } : {}, value ?? "");
  const short = value => (value == null ? "" : Number(Number(value).toPrecision(4)).toString());
  const link = (text, ...parts) => el("a", { href: "#" + parts.map(encodeURIComponent).join("/") }, text);
  const key = run => el("span", { class: "key", style: `background:${COLORS[run % COLORS.length]}` });
  const rewardText = reward => el("span", { class: reward >= SUCCESS ? "good" : "bad" }, `reward ${short(reward)}`);

  function table(heads, rows, label) {
    const head = el("tr", {}, heads.map(([text, kind]) => el("th", { scope: "col", class: kind ?? null }, text)));
    return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
      el("table", {}, el("thead", {}, head), el("tbody", {}, rows)));
  }

  // A list that holds one page of its items as elements, however many there are.
  function paged(items, size, draw, noun) {
    const box = el("div"), where = el("span", { "aria-live": "polite" });
    const back = el("button", { type: "button", onclick: () => turn(-1) }, "Previous");
    const next = el("button", { type: "button", onclick: () => turn(1) }, "Next");
    let page = 0;
    function turn(step) {
      page += step;
      const start = page * size, shown = items.slice(start, start + size);
      box.replaceChildren(shown.length ? draw(shown) : el("p", { class: "soft" }, `No ${noun}.`));
      where.textContent = `${items.length ? start + 1 : 0} to ${start + shown.length} of ${items.length} ${noun}`;
      back.disabled = page === 0;
      next.disabled = start + size >= items.length;
    }
    turn(0);
    return el("div", {}, el("div", { class: "controls" }, back, next, where), box);
  }

  function chooseRun(view, run) {
    if (runs.length < 2) return null;
    const select = el("select", { onchange: () => { location.hash = `${view}/${select.value}`; } },
      runs.map((r, i) => el("option", { value: i, selected: i === run }, r.name)));
    return el("label", {}, "Run ", select);
  }

  // Rollouts

  function texts(run) {
    const id = `texts-${run}`;
    if (!parsed.has(id)) parsed.set(id, read(id));
    return parsed.get(id);
  }

  function rollout(run, update, place) {
    const id = `rollouts-${run}-${update}`;
    if (!parsed.has(id)) {
      if (parsed.size >= 64) parsed.delete(parsed.keys().next().value);
      parsed.set(id, read(id));
    }
    return parsed.get(id)[place];
  }

  function nextVisit(run, one) {
    const { visits } = promptsById[run].get(one.example);
    const later = visits.find(([update, , sample]) => update > one.update && sample === one.sample);
    return later ? rollout(run, later[0], later[1]) : null;
  }

  // The words in the middle, which two responses don't have in common.
  function changed(before, after) {
    const one = before.split(/(\s+)/), other = after.split(/(\s+)/);
    let start = 0, end = 0;
    while (start < other.length && start < one.length && one[start] === other[start]) start++;
    while (end < Math.min(one.length, other.length) - start && one.at(-1 - end) === other.at(-1 - end)) end++;
    const middle = other.slice(start, other.length - end).join("");
    return [other.slice(0, start).join(""), middle ? el("mark", {}, middle) : null,
      other.slice(other.length - end).join("")];
  }

  // The response's tokens on a ground as strong as their loss, with the spaces that a tokenizer leaves out of them.
  function shaded(response, tokens, losses) {
    const most = Math.max(...losses, 1e-9);
    let at = 0;
    return tokens.map((token, i) => {
      const space = response.startsWith(token, at) ? "" : response.slice(at).match(/^\s*/)[0];
      const isNext = response.startsWith(token, at + space.length);
      if (isNext) at += space.length + token.length;
      const strength = (0.85 * Math.max(0, losses[i]) / most).toFixed(3);
      return [isNext ? space : "", el("span", { class: "token", title: `${losses[i].toFixed(4)} nats`,
        style: `background:rgba(var(--heat),${strength})` }, token)];
    });
  }

  const labelled = (label, ...content) => [el("div", { class: "label" }, label), el("pre", {}, content)];

  function operationText(op) {
    const about = op.type === "PRUNE" ? `${op.id} (${op.reason})` : [op.entry, op.text].filter(Boolean).join(": ");
    return `${op.type} ${about}${op.problem ? `, not applied: ${op.problem}` : ""}\n`;
  }

  // The teacher's prompt, section by section; what stands between them is the template's.
  function teacherPrompt(run, one) {
    const box = el("details", { ontoggle: () => {
      if (box.open && box.childElementCount === 1) put(box, one.teacher_prompt.map(([section, of]) =>
        el("div", { class: section ? "section" : "section soft" }, section ? el("div", { class: "label" }, section) : null,
          el("pre", {}, textOf(run, one, of)))));
    } }, el("summary", {}, "read it"));
    return box;
  }

  function textOf(run, one, of) {
    if (of === "question") return promptsById[run].get(one.example).question;
    return typeof of === "string" ? one[of] : texts(run)[of];
  }

  function card(run, update, place) {
    const one = rollout(run, update, place), later = nextVisit(run, one);
    const tests = one.tests_passed.length > 1
      ? `${one.tests_passed.filter(Boolean).length} of ${one.tests_passed.length} tests passed` : null;
    const response = one.tokens ? labelled("Response, shaded by each token's loss", shaded(one.response, one.tokens, one.losses))
      : labelled("Response", one.response);
    return el("article", { class: "visit" },
      el("h3", {}, `Update ${one.update}, sample ${one.sample}`, rewardText(one.reward),
        link(one.example, "rollouts", run, one.example),
        el("span", { class: "soft" }, [tests, `${one.response_tokens} tokens`, one.is_truncated ? "cut off" : null,
          one.verify_error ? `verification failed: ${one.verify_error}` : null].filter(Boolean).join(", "))),
      response,
      one.feedback ? labelled("Feedback", one.feedback) : null,
      one.answers.map(answer => [labelled({ reflect: "Reflection", tag: "Tags of a success", curate: "Curator" }
        [answer.purpose] ?? answer.purpose, answer.text),
        answer.problems.map(p => el("p", { class: "label bad" }, `${p.kind}: ${p.detail}`))]).flat(2),
      one.operations.length ? labelled("Operations on the playbook", one.operations.map(operationText)) : null,
      el("div", { class: "label" }, "Teacher's prompt"),
      el("p", {}, one.teacher_sections.length ? one.teacher_sections.map(s => el("span", { class: "chip" }, s))
        : one.teacher_skipped ? "too long: this sample was skipped" : "plain: this sample was not distilled"),
      one.teacher_prompt.length ? teacherPrompt(run, one) : null,
      later ? [el("div", { class: "label" }, `Next time, update ${later.update}: `, rewardText(later.reward),
        later.response === one.response ? ", the same response" : ", changed words marked"),
        later.response === one.response ? null : el("pre", {}, changed(one.response, later.response))] : null);
  }

  const cards = (run, places, noun) =>
    paged(places, CARDS, shown => el("div", {}, shown.map(([update, place]) => card(run, update, place))), noun);

  // Views

  function overview() {
    const facts = runs.map((run, i) => el("tr", {}, el("td", {}, key(i), run.name),
      ["method", "task", "base", "seed", "updates", "best_update"].map(name => cell(run.facts[name])),
      cell(run.facts.is_finished === undefined ? "" : run.facts.is_finished ? "yes" : "no")));
    const names = [...new Set(runs.flatMap(run => Object.keys(run.metrics)))].sort();
    const headline = HEADLINES.flatMap(pattern => names.filter(name => pattern.test(name)));
    const rows = headline.map(name => el("tr", {}, cell(name),
      runs.map(({ metrics: { [name]: m } }) => cell(m ? `${short(m.first)} → ${short(m.last)}` : "", "number"))));
    const all = [...new Set(runs.flatMap(run => Object.keys(run.series)))].sort();
    const panels = el("div", { class: "panels" });
    const add = name => panels.append(panel(name));
    const select = el("select", { onchange: () => { add(select.value); select.selectedIndex = 0; } },
      el("option", { value: "", disabled: true, selected: true }, "another curve"),
      all.map(name => el("option", { value: name }, name)));
    put(main, el("h2", {}, runs.length > 1 ? "Runs" : "Run"),
      table([["run"], ["method"], ["task"], ["base"], ["seed"], ["updates"], ["best update"], ["finished"]], facts, "Runs"),
      runs.filter(run => run.missing.length).map(run =>
        el("p", { class: "note" }, `${run.name} has no ${run.missing.join(", ")}: what they tell is left out.`)),
      el("h2", {}, "First to last"),
      table([["metric"], ...runs.map(run => [run.name, "number"])], rows, "Headline numbers"),
      el("h2", {}, "Curves over updates"), el("div", { class: "controls" }, el("label", {}, "Add ", select)), panels);
    PANELS.flatMap(pattern => all.filter(name => pattern.test(name))).forEach(add);
  }

  function panel(name) {
    const box = el("section", { class: "panel", "aria-label": name }, el("h3", {}, name));
    const owners = runs.map((run, i) => [run, i]).filter(([run]) => run.series[name]);
    const data = uPlot.join(owners.map(([run]) => {
      const last = new Map(run.series[name][0].map((x, i) => [x, run.series[name][1][i]]));
      const xs = [...last.keys()].sort((a, b) => a - b);
      return [xs, xs.map(x => last.get(x))];
    }));
    const ink = variable => () => getComputedStyle(document.documentElement).getPropertyValue(variable);
    const axis = { stroke: ink("--soft"), grid: { stroke: ink("--line"), width: 1 }, ticks: { stroke: ink("--line") } };
    requestAnimationFrame(() => {
      const plot = new uPlot({
        width: box.clientWidth - 30, height: 190, scales: { x: { time: false } },
        axes: [axis, { ...axis, size: 56 }], legend: { show: runs.length > 1 },
        series: [{ label: "update" }, ...owners.map(([run, i]) => (
          { label: run.name, stroke: COLORS[i % COLORS.length], width: 2, spanGaps: true,
            points: { show: data[0].length < 40, size: 4, fill: COLORS[i % COLORS.length] }, value: (_, v) => short(v) }))],
      }, data, box);
      plots.push([plot, box]);
    });
    return box;
  }

  function playbook(run, playbookKey, id) {
    const { entries, series } = runs[run];
    if (id !== undefined) return entry(run, entries.find(e => e.id === id && e.playbook === playbookKey));
    const last = Math.max(0, ...(series["train/loss"]?.[0] ?? []), ...entries.map(e => (e.died ?? e.born ?? 0) + 1));
    const state = el("select", { onchange: draw }, ["all", "alive", "gone"].map(text => el("option", {}, text)));
    const text = el("input", { type: "search", placeholder: "id or lesson", oninput: draw });
    const list = el("div");
    function draw() {
      const kept = entries.filter(e => (state.value === "all" || (state.value === "alive") === (e.died === null))
        && `${e.id} ${e.text} ${e.playbook}`.toLowerCase().includes(text.value.toLowerCase()));
      list.replaceChildren(paged(kept, PAGE, shown => table(
        [["entry"], ["lesson", "wide"], ["life: born, tagged, gone"], ["helpful", "number"], ["harmful", "number"], ["end"]],
        shown.map(e => el("tr", {}, el("td", {}, link(e.id, "playbook", run, e.playbook, e.id),
          e.playbook ? ` of ${e.playbook}` : ""), cell(e.text || "(written before the transcripts begin)", "wide"),
          el("td", {}, life(e, last)), cell(String(e.helpful), "number"), cell(String(e.harmful), "number"),
          cell(e.died === null ? "" : `update ${e.died}: ${e.why}`))), "Playbook entries"), "entries"));
    }
    draw();
    put(main, el("h2", {}, "Playbook"), el("div", { class: "controls" }, chooseRun("playbook", run),
      el("label", {}, "Show ", state), el("label", {}, "Find ", text)), list);
  }

  function life(e, last) {
    const x = update => 1 + 98 * (update / Math.max(last, 1));
    const end = e.died ?? last, verdicts = new Map();
    for (const [update, , verdict] of e.tagged) {
      if (verdict !== "neutral") verdicts.set(`${update} ${verdict}`, [update, verdict]);
    }
    const label = `born ${e.born === null ? "before the run" : `in update ${e.born}`}, ${e.tagged.length} verdicts, ${
      e.died === null ? "alive" : `${e.why} in update ${e.died}`}`;
    return el("svg", { class: "life", viewBox: "0 0 100 12", preserveAspectRatio: "none", role: "img",
      "aria-label": label }, el("title", {}, label),
      el("line", { class: "alive", x1: x(e.born ?? 0), x2: x(end), y1: 6, y2: 6 }),
      [...verdicts.values()].map(([update, verdict]) =>
        el("circle", { class: verdict, cx: x(update), cy: verdict === "helpful" ? 4 : 8, r: 1 })),
      e.died === null ? null : el("line", { class: "end", x1: x(end), x2: x(end), y1: 1, y2: 11 }));
  }

  function entry(run, e) {
    const born = e.born === null ? "there at the start" : `born in update ${e.born}`;
    put(main, el("p", {}, link("All entries", "playbook", run)), el("h2", {}, `Entry ${e.id}`),
      el("pre", {}, e.text || "(its text was written before the transcripts begin)"),
      el("p", { class: "soft" }, `${e.section || "section unknown"}, ${born}, ${e.helpful} helpful, ${e.harmful} harmful, ${
        e.died === null ? "alive at the end" : `${e.why} in update ${e.died}`}`),
      el("h2", {}, "Samples that made it"), cards(run, e.made_by, "samples"),
      el("h2", {}, "Samples that used it and judged it"), cards(run, e.tagged, "samples"));
  }

  function rollouts(run, example) {
    const { prompts } = runs[run];
    if (example !== undefined) {
      const at = prompts.findIndex(prompt => prompt.id === example), prompt = prompts[at];
      const beside = (step, text) => (prompts[at + step] ? link(text, "rollouts", run, prompts[at + step].id) : null);
      put(main, el("div", { class: "controls" }, link("All prompts", "rollouts", run), beside(-1, "previous prompt"),
        beside(1, "next prompt")), el("h2", {}, prompt.id), el("pre", {}, prompt.question), cards(run, prompt.visits, "rollouts"));
      return;
    }
    const solved = prompt => prompt.visits.map(visit => visit[3] >= SUCCESS);
    const kinds = {
      "all prompts": () => true,
      "never solved": prompt => !solved(prompt).some(Boolean),
      "failed first, solved last": prompt => !solved(prompt)[0] && solved(prompt).at(-1),
      "solved before, failed last": prompt => solved(prompt).some(Boolean) && !solved(prompt).at(-1),
    };
    const kind = el("select", { onchange: draw }, Object.keys(kinds).map(text => el("option", {}, text)));
    const text = el("input", { type: "search", placeholder: "id or words", oninput: draw });
    const list = el("div");
    function draw() {
      const words = text.value.toLowerCase();
      const kept = prompts.filter(prompt => kinds[kind.value](prompt)
        && (!words || `${prompt.id} ${prompt.question}`.toLowerCase().includes(words)));
      list.replaceChildren(paged(kept, PAGE, shown => table(
        [["prompt"], ["question", "wide"], ["updates"], ["rewards, in order"]],
        shown.map(prompt => el("tr", {}, el("td", {}, link(prompt.id, "rollouts", run, prompt.id)),
          cell(prompt.question.slice(0, 200), "wide"), cell(`${prompt.visits[0][0]} to ${prompt.visits.at(-1)[0]}`),
          el("td", { class: "dots", role: "img",
            "aria-label": prompt.visits.map(visit => short(visit[3])).slice(0, 16).join(", ") },
            solved(prompt).slice(0, 16).map(is => el("span", { class: is ? "good" : "bad" }, is ? "●" : "○")),
            prompt.visits.length > 16 ? " ..." : ""))), "Prompts"), "prompts"));
    }
    draw();
    put(main, el("h2", {}, "Rollouts by prompt"), el("div", { class: "controls" }, chooseRun("rollouts", run),
      el("label", {}, "Show ", kind), el("label", {}, "Find ", text)), list);
  }

  function costs() {
    runs.forEach(({ spent, name }, run) => {
      const phases = Object.keys(spent).filter(k => k.startsWith("time/")).map(k => k.slice(5, -2));
      const seconds = phase => spent[`time/${phase}_s`], total = phases.reduce((sum, phase) => sum + seconds(phase), 0);
      const tokens = (phase, kind) => spent[`tokens/${phase}_${kind}`];
      const rows = phases.sort((a, b) => seconds(b) - seconds(a)).map(phase => el("tr", {}, cell(phase),
        cell(seconds(phase).toFixed(1), "number"), cell(`${(100 * seconds(phase) / total).toFixed(1)} %`, "number"),
        el("td", { class: "bar-cell" }, el("span", { class: "bar", style: `width:${100 * seconds(phase) / total}%` })),
        [spent[`requests/${phase}`], tokens(phase, "prompt"), tokens(phase, "generated")].map(n =>
          cell(n === undefined ? "" : n.toLocaleString("en"), "number"))));
      put(main, el("h2", {}, key(run), name), table([["phase"], ["seconds", "number"], ["share", "number"], [""],
        ["requests", "number"], ["prompt tokens", "number"], ["generated tokens", "number"]], rows, `Costs of ${name}`),
        el("p", { class: "soft" }, `${total.toFixed(1)} s in all.`));
    });
  }

  function config() {
    const rows = differing.map(([name, values]) => el("tr", {}, cell(name), values.map(value => cell(value ?? "(unset)", "wide"))));
    put(main, el("h2", {}, "Settings in which the runs differ"), rows.length
      ? table([["key"], ...runs.map(run => [run.name, "wide"])], rows, "Differing settings")
      : el("p", { class: "soft" }, runs.length > 1 ? "None." : "A report on several runs shows them here."));
  }

  const VIEWS = { overview, playbook, rollouts, costs, config };
  const TITLES = { overview: "Overview", playbook: "Playbook", rollouts: "Rollouts", costs: "Time and tokens", config: "Settings" };

  function show() {
    const [name = "", run = "0", ...rest] = location.hash.slice(1).split("/").map(decodeURIComponent);
    const view = name in VIEWS ? name : "overview";
    plots.forEach(([plot]) => plot.destroy());
    plots = [];
    main.replaceChildren();
    document.getElementById("tabs").replaceChildren(...Object.keys(VIEWS).map(tab =>
      el("a", { href: `#${tab}`, "aria-current": tab === view ? "page" : null }, TITLES[tab])));
    VIEWS[view](Number(run), ...rest);
    window.scrollTo(0, 0);
  }

  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement, isDark = getComputedStyle(root).colorScheme.includes("dark");
    root.dataset.theme = isDark ? "light" : "dark";
    plots.forEach(([plot]) => plot.redraw());
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(([plot]) => plot.redraw()));
  addEventListener("resize", () => plots.forEach(([plot, box]) => plot.setSize({ width: box.clientWidth - 30, height: 190 })));
  addEventListener("hashchange", () => { show(); main.focus({ preventScroll: true }); });
  show();
})();
