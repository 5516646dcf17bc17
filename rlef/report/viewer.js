// What both viewers share: filters, and a list that keys and clicks walk through.
"use strict";

function viewerData(anchor) {
  const block = document.getElementById(anchor + "-data");
  return block ? JSON.parse(block.textContent) : null;
}

// A labelled choice; `options`: [value, words].
function choice(label, options, changed) {
  const select = make("select", { change: changed }, ...options.map(([value, words]) => make("option", { value }, words)));
  return [select, make("label", {}, label, select)];
}

function search(changed) {
  const input = make("input", { type: "search", input: changed, spellcheck: "false" });
  return [input, make("label", {}, "words in it", input)];
}

// A list whose rows are drawn by `row(item, place, items)`; one is chosen, and `chosen(item)` is told. `keys(event, item)` may take other keys.
function walkable({ role, name, row, chosen, keys }) {
  const list = make("div", { class: "list", role, tabindex: "0", "aria-label": name });
  const id = name.replace(/\W/g, "");
  let items = [], at = -1;

  function place(now, told = true) {
    if (!items.length) return;
    at = Math.max(0, Math.min(items.length - 1, now));
    [...list.children].forEach((element, number) => {
      element.setAttribute("aria-selected", String(number === at));
      element.classList.toggle("at", number === at);
    });
    list.setAttribute("aria-activedescendant", `${id}-${at}`);
    const element = list.children[at];
    if (element.offsetTop < list.scrollTop + 8) list.scrollTop = element.offsetTop - 8;
    else if (element.offsetTop + element.offsetHeight > list.scrollTop + list.clientHeight - 8) list.scrollTop = element.offsetTop + element.offsetHeight - list.clientHeight + 8;
    if (told) chosen(items[at]);
  }

  function fill(now, selected, told = true) {
    items = now;
    list.replaceChildren(...items.map((item, number) => {
      const element = row(item, number, items);
      element.id = `${id}-${number}`;
      element.addEventListener("click", event => { list.focus({ preventScroll: true }); place(number); keys?.({ key: "click", event }, items[number]); });
      return element;
    }));
    list.removeAttribute("aria-activedescendant");
    at = -1;
    if (items.length) place(Math.max(0, items.indexOf(selected)), told);
    else chosen(null);
  }

  list.style.position = "relative";
  list.addEventListener("keydown", event => {
    const page = Math.max(1, Math.floor(list.clientHeight / 34));
    const moves = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1, PageDown: at + page, PageUp: at - page };
    if (event.key in moves) place(moves[event.key]);
    else if (!(items.length && keys?.(event, items[at]))) return;
    event.preventDefault();
  });
  return { list, fill, place: item => place(items.indexOf(item)), has: item => items.includes(item) };
}

function scoreColour(score) {
  return `hsl(${Math.round(120 * Math.max(0, Math.min(1, score)))} 65% 45%)`;
}

function titled(map, name) {
  return Object.hasOwn(map, name) ? map[name] : name;
}
