// Elements that are made of text alone: nothing that a model wrote is ever read as markup.
"use strict";

function make(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") element.className = value;
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined));  // strings become text, never markup
  return element;
}

function put(element, ...children) {
  element.replaceChildren(...children.filter(child => child !== null));
}
