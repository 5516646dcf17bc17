// The menu follows the reader.
"use strict";
{
  const links = new Map([...document.querySelectorAll("nav a")].map(link => [link.hash.slice(1), link]));
  const seen = new Set();
  const watch = new IntersectionObserver(entries => {
    for (const entry of entries) entry.isIntersecting ? seen.add(entry.target) : seen.delete(entry.target);
    const first = [...document.querySelectorAll("main h2")].filter(heading => links.has(heading.id));
    const passed = first.filter(heading => heading.getBoundingClientRect().top < innerHeight * 0.4);
    const now = passed.at(-1) ?? first[0];
    for (const [id, link] of links) {
      if (now && id === now.id) {
        link.setAttribute("aria-current", "true");
        const nav = link.parentElement;  // scrolled by itself: scrollIntoView would move the page too
        nav.scrollTo({ left: link.offsetLeft - nav.clientWidth / 2 + link.clientWidth / 2, top: link.offsetTop - nav.clientHeight / 2 });
      } else {
        link.removeAttribute("aria-current");
      }
    }
  }, { rootMargin: "0px 0px -60% 0px", threshold: [0, 1] });
  for (const heading of document.querySelectorAll("main h2, main h3")) watch.observe(heading);
}
