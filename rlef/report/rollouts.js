// Sampled answers: a list with filters, and the chosen one's steps in the colours of their scores.
"use strict";
{
  const data = viewerData("rollouts");
  const host = document.getElementById("rollouts-viewer");
  if (data && host) {
    const items = data.items.map(item => ({ ...item, problem: data.problems[item.p] }));
    for (const item of items) {
      const scores = item.t.map(step => step[1]).filter(score => score !== undefined);
      item.worst = scores.length ? Math.min(...scores) : null;
      item.words = item.problem.q + " " + item.t.map(step => step[0]).join(" ");
    }
    const count = make("p", { class: "count", role: "status" });
    const detail = make("div", { class: "detail", role: "region", "aria-label": "Chosen answer", "aria-live": "polite", tabindex: "0" });
    let selected = null;

    const refill = () => fill();
    const operations = [...new Set(data.problems.map(problem => problem.o).filter(Boolean))].sort();
    const [source, sourceLabel] = choice("answers of", [["", "all"], ...data.sources.map((name, place) => [String(place), name])], refill);
    const [right, rightLabel] = choice("right or wrong", [["", "any"], ["right", "right"], ["wrong", "wrong"], ["unknown", "not known"]], refill);
    const [worst, worstLabel] = choice("worst step", [["", "any"], ["0", "below 0.2"], ["0.2", "0.2 to 0.5"], ["0.5", "0.5 to 0.8"], ["0.8", "0.8 and above"], ["none", "not scored"]], refill);
    const [operation, operationLabel] = choice("problem by", [["", "any"], ["seed", "a seed"], ...operations.map(name => [name, titled(data.operations, name)])], refill);
    const [order, orderLabel] = choice("order", [["", "as sampled"], ["down", "best reward first"], ["up", "worst reward first"]], refill);
    const [words, wordsLabel] = search(refill);
    if (data.sources.length) source.value = "0";

    const verdict = item => (item.right === undefined ? "unknown" : item.right ? "right" : "wrong");
    const band = score => (score === null ? "none" : score < 0.2 ? "0" : score < 0.5 ? "0.2" : score < 0.8 ? "0.5" : "0.8");

    function matches(item) {
      return (!source.value || item.s === Number(source.value)) && (!right.value || verdict(item) === right.value)
        && (!worst.value || band(item.worst) === worst.value) && (!operation.value || (item.problem.o ?? "seed") === operation.value)
        && item.words.toLowerCase().includes(words.value.toLowerCase());
    }

    function fill() {
      const shown = items.filter(matches);
      const total = item => item.total ?? (order.value === "up" ? Infinity : -Infinity);
      if (order.value) shown.sort((a, b) => (order.value === "up" ? total(a) - total(b) : total(b) - total(a)) || 0);
      const known = shown.filter(item => item.right !== undefined);
      count.textContent = `${shown.length} answers` + (known.length ? `; of ${known.length} whose answer is known ${known.filter(item => item.right).length} are right` : "");
      list.fill(shown, selected);
    }

    const MARKS = { right: ["✓", "good"], wrong: ["✕", "bad"], unknown: ["·", "plain"] };

    function row(item, place, all) {
      const again = place > 0 && all[place - 1].p === item.p;
      const [sign, kind] = MARKS[verdict(item)];
      const reward = item.masked ? "not judged" : item.total !== undefined ? item.total.toFixed(2) : "";
      return make("div", { class: "row", role: "option", "aria-selected": "false", "aria-label": `${verdict(item) === "unknown" ? "" : verdict(item) + ", "}${reward ? "reward " + reward + ", " : ""}${item.problem.q}` },
        make("span", { class: "sign " + kind, "aria-hidden": "true" }, sign),
        make("span", { class: again ? "words again" : "words" }, again ? `${item.side ?? "again"}: ${item.t.at(-1)?.[0] ?? "nothing"}` : item.problem.q), make("span", { class: "tag" }, reward));
    }

    function meter(name, value) {
      const bar = make("i", { "--score": scoreColour(value) });
      bar.style.width = `${Math.round(100 * Math.max(0, Math.min(1, value)))}%`;
      return [make("span", {}, name), make("div", { role: "img", "aria-label": `${name} ${value.toFixed(2)}` }, bar), make("span", {}, value.toFixed(2))];
    }

    function steps(item) {
      return item.t.map(([text, score]) => make("div", { class: "step", "--score": score === undefined ? null : scoreColour(score) },
        make("b", {}, score === undefined ? "" : score.toFixed(2)), make("span", {}, text)));
    }

    function show(item) {
      selected = item ?? selected;
      detail.scrollTop = 0;
      if (!item) return put(detail, make("p", { class: "dim" }, "Nothing matches."));
      const { problem } = item;
      const told = [problem.o ? titled(data.operations, problem.o) : null, problem.d ? `${problem.d} reasoning step${problem.d > 1 ? "s" : ""}` : null,
        problem.a ? `known answer ${problem.a}, which the policy never sees` : null].filter(Boolean);
      const about = [data.sources[item.s], item.n !== undefined ? `sample ${item.n + 1}` : null, item.side ? `the ${item.side} of the pair` : null, item.length ? `${item.length} tokens` : null, item.cut ? "cut off" : null].filter(Boolean);
      const others = items.filter(one => one !== item && one.p === item.p);
      put(detail, 
        make("h4", {}, "Problem"), make("div", { class: "asked" }, problem.q), told.length ? make("p", { class: "facts" }, told.join(" · ")) : null,
        problem.f ? make("p", { class: "facts bad" }, `flawed: ${titled(data.flaws, problem.f)}`) : null,
        make("h4", {}, verdict(item) === "unknown" ? "Answer" : `Answer: ${verdict(item)}`), ...steps(item),
        item.masked ? make("p", { class: "facts" }, "It could not be judged: it taught nothing.")
          : item.total !== undefined ? make("div", { class: "meters" }, ...meter("r_I", item.i), ...meter("r_A", item.r), ...meter("total = r_I × r_A", item.total)) : null,
        make("p", { class: "facts" }, about.join(" · ")),
        others.length ? make("h4", {}, "Other answers to it") : null,
        others.length ? make("div", { class: "others" }, ...others.slice(0, 24).map(one => make("button", { type: "button", click: () => go(one) },
          `${MARKS[verdict(one)][0]} ${data.sources[one.s]}${one.n !== undefined ? `, sample ${one.n + 1}` : one.side ? `, ${one.side}` : ""}: ${one.t.at(-1)?.[0] ?? ""}${one.total !== undefined ? ` (${one.total.toFixed(2)})` : ""}`))) : null);
    }

    function go(item) {
      selected = item;
      if (!matches(item)) {
        source.value = right.value = worst.value = operation.value = words.value = "";
        fill();
      }
      list.place(item);
      list.list.focus({ preventScroll: true });
    }

    const list = walkable({ role: "listbox", name: "Sampled answers", row, chosen: show });
    host.append(make("div", { class: "filters" }, sourceLabel, rightLabel, worstLabel, operationLabel, orderLabel, wordsLabel), count, make("div", { class: "panes" }, list.list, detail));
    fill();
  }
}
