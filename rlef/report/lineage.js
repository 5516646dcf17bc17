// The evolution tree: walk through it, and see the line of the chosen problem with what each operation changed.
"use strict";
{
  const data = viewerData("lineage");
  const host = document.getElementById("lineage-viewer");
  if (data && host) {
    const nodes = data.nodes.map((node, place) => ({ ...node, place, children: [], level: 1 }));
    for (const node of nodes) {
      node.text = node.t.filter(([kind]) => kind >= 0).map(([, words]) => words).join("");
      if (node.p < 0) continue;
      node.parent = nodes[node.p];
      node.level = node.parent.level + 1;
      node.parent.children.push(node);
    }
    const open = new Set();
    const roots = nodes.filter(node => node.p < 0);
    const operations = [...new Set(nodes.map(node => node.o).filter(Boolean))].sort();
    const rules = [...new Set(nodes.map(node => node.w).filter(Boolean))].sort();
    const detail = make("div", { class: "detail", role: "region", "aria-label": "Line of the chosen problem", "aria-live": "polite", tabindex: "0" });
    const count = make("p", { class: "count", role: "status" });
    let selected = null;

    const refilter = () => { open.clear(); fill(); };
    const [operation, operationLabel] = choice("operation", [["", "any"], ...operations.map(name => [name, titled(data.operations, name)])], refilter);
    const states = [["", "any"], ["kept", "kept"], ["flawed", "kept, but flawed"], ["out", "eliminated"], ...rules.map(rule => ["rule:" + rule, "– " + titled(data.rules, rule)])];
    const [state, stateLabel] = choice("state", states, refilter);
    const [words, wordsLabel] = search(refilter);

    const asked = () => operation.value || state.value || words.value;
    function matches(node) {
      const wanted = state.value;
      if (operation.value && node.o !== operation.value) return false;
      if (wanted === "kept" && (node.w || node.p < 0)) return false;
      if (wanted === "flawed" && (node.w || !node.f)) return false;
      if (wanted === "out" && !node.w) return false;
      if (wanted.startsWith("rule:") && node.w !== wanted.slice(5)) return false;
      return node.text.toLowerCase().includes(words.value.toLowerCase());
    }

    function visible() {
      const hits = new Set(nodes.filter(matches));
      const kept = new Set();
      for (const hit of hits) for (let node = hit; node && !kept.has(node); node = node.parent) kept.add(node);
      const shown = [];
      const walk = node => {
        if (asked() && !kept.has(node)) return;
        node.hit = hits.has(node);
        shown.push(node);
        if (isOpen(node)) node.children.forEach(walk);
      };
      roots.forEach(walk);
      count.textContent = asked() ? `${hits.size} of ${nodes.length} problems, with those that they come from` : `${nodes.length} problems in ${roots.length} trees`;
      return shown;
    }

    const isOpen = node => open.has(node) !== Boolean(asked());  // with a filter all is open until it is closed

    function fill() {
      const shown = visible();
      tree.fill(shown, shown.includes(selected) ? selected : shown.find(node => node.hit && asked()));
    }

    function row(node) {
      const twist = node.children.length ? (isOpen(node) ? "▾" : "▸") : "";
      const label = node.p < 0 ? "seed" : titled(data.operations, node.o);
      const element = make("div", {
        class: "row" + (node.w ? " out" : "") + (node.hit ? "" : " other"), role: "treeitem", "aria-level": node.level, "aria-selected": "false",
        "aria-expanded": node.children.length ? String(isOpen(node)) : null,
        "aria-label": `${label}${node.w ? ", eliminated" : node.f ? ", flawed" : ""}: ${node.text}`
      },
      make("span", { class: "twist", "aria-hidden": "true" }, twist), node.p < 0 ? null : make("span", { class: "op" }, label), make("span", { class: "words" }, node.text),
      make("span", { class: "tag" }, node.p < 0 ? (node.children.length ? `${size(node)} made` : "") : node.w ? "out" : node.f ? "flawed" : node.d ? `${node.d} step${node.d > 1 ? "s" : ""}` : ""));
      element.style.paddingLeft = 8 + 16 * (node.level - 1) + "px";
      return element;
    }

    const size = node => node.children.reduce((sum, child) => sum + 1 + size(child), 0);

    function toggle(node, opened) {
      if (!node.children.length || isOpen(node) === opened) return false;
      open.has(node) ? open.delete(node) : open.add(node);
      selected = node;
      fill();
      return true;
    }

    function keys(event, node) {
      if (event.key === "click") {
        if (node.children.length && event.event.target.closest(".twist")) toggle(node, !isOpen(node));
        else if (node.children.length && !isOpen(node)) toggle(node, true);
        return true;
      }
      if (event.key === "Enter" || event.key === " ") return toggle(node, !isOpen(node)) || true;
      if (event.key === "ArrowRight") { if (!toggle(node, true) && node.children.length) tree.place(node.children.find(tree.has) ?? node); return true; }
      if (event.key === "ArrowLeft") { if (!toggle(node, false) && node.parent) tree.place(node.parent); return true; }
      return false;
    }

    function said(parts) {
      return make("div", { class: "said" }, ...parts.flatMap(([kind, text]) => (kind > 0 ? [make("mark", {}, text)] : kind < 0 ? [make("del", {}, text), " "] : [text])));
    }

    function facts(node) {
      const found = [];
      if (node.d) found.push(`${node.d} reasoning step${node.d > 1 ? "s" : ""}`);
      if (node.a) found.push(`known answer ${node.a}`);
      if (node.x !== undefined) found.push(`the policy solves ${Math.round(100 * node.x)}%`);
      if (node.by) found.push(`written by ${node.by}`);
      return found.length ? make("p", { class: "facts" }, found.join(" · ")) : null;
    }

    function show(node) {
      selected = node ?? selected;
      detail.scrollTop = 0;
      if (!node) return put(detail, make("p", { class: "dim" }, "Nothing matches."));
      const line = [];
      for (let one = node; one; one = one.parent) line.unshift(one);
      put(detail, make("ol", { class: "line" }, ...line.map(one => make("li", {},
        make("div", { class: "how" }, one.p < 0 ? "seed" : `round ${one.r}: ${titled(data.operations, one.o)}`),
        said(one.t), facts(one),
        one.f ? make("p", { class: "facts bad" }, `flawed: ${titled(data.flaws, one.f)}`) : null,
        one.w ? make("p", { class: "facts bad" }, `eliminated: ${titled(data.rules, one.w)}${one.wd ? ` (${one.wd})` : ""}`) : null))));
    }

    const tree = walkable({ role: "tree", name: "Evolution tree", row, chosen: show, keys });
    host.append(make("div", { class: "filters" }, operationLabel, stateLabel, wordsLabel), count, make("div", { class: "panes" }, tree.list, detail));
    // The first tree open, down to its deepest line.
    const deepest = nodes.reduce((best, node) => (node.level > best.level && !node.w && !node.f ? node : best), nodes[0]);
    for (let node = deepest; node; node = node.parent) open.add(node);
    selected = deepest;
    fill();
  }
}
