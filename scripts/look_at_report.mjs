// Looks at OUT/report.html as a reader does, and ends with 1 where something is not as it must be; see look_at_report.py.
import { createRequire } from "node:module";
import { statSync } from "node:fs";
import { execSync } from "node:child_process";
import { resolve } from "node:path";

const { chromium } = createRequire(resolve(process.argv[3], "x.js"))("playwright-core");
const out = resolve(process.argv[2]);
const file = `${out}/report.html`;
const MOST_BYTES = 5e6;
const faults = [];
const check = (holds, what) => { if (!holds) faults.push(what); };

const browser = await chromium.launch({ executablePath: execSync("command -v chromium").toString().trim(), args: ["--no-sandbox"] });

async function open(width, scheme) {
  const page = await browser.newPage({ viewport: { width, height: 900 }, colorScheme: scheme });
  const where = `${width} px, ${scheme}`;
  page.on("console", message => { if (["error", "warning"].includes(message.type())) faults.push(`${where}: console ${message.type()}: ${message.text()}`); });
  page.on("pageerror", error => faults.push(`${where}: ${error}`));
  page.on("dialog", dialog => { faults.push(`${where}: a dialog: ${dialog.message()}`); dialog.dismiss(); });
  page.on("request", request => { if (!request.url().startsWith("data:") && request.url() !== `file://${file}`) faults.push(`${where}: it fetches ${request.url()}`); });
  await page.goto(`file://${file}`);
  // As a reader scrolls: plots are drawn when they come into view.
  const height = await page.evaluate(() => document.documentElement.scrollHeight);
  for (let y = 0; y < height; y += 600) {
    await page.evaluate(to => scrollTo({ top: to, behavior: "instant" }), y);
    await page.waitForTimeout(60);
  }
  await page.waitForFunction(() => [...document.querySelectorAll("figure.plot .canvas")].every(canvas => canvas.childElementCount > 0), null, { timeout: 20000 })
    .catch(() => faults.push(`${where}: a plot is not drawn`));
  await page.waitForTimeout(300);
  return page;
}

const wide = await open(1280, "light");
const headings = await wide.$$eval("main h2", found => found.map(one => one.id));
for (const link of await wide.$$eval("nav a", found => found.map(one => one.hash.slice(1)))) check(headings.includes(link), `the menu leads to #${link}, which is not there`);
check(await wide.$$eval("*", all => all.filter(one => [...one.attributes].some(attribute => attribute.name.startsWith("on"))).length) === 0, "an element has a handler as an attribute");
check(statSync(file).size < MOST_BYTES, `${statSync(file).size} bytes`);

async function walk(page, id, role, how) {
  const list = page.locator(`#${id} [role=${role === "treeitem" ? "tree" : "listbox"}]`);
  if (await list.count() === 0) return false;
  const chosen = () => page.locator(`#${id} [aria-selected=true]`).first().evaluate(one => [one.id, one.textContent].join());
  const detail = () => page.locator(`#${id} .detail`).innerText();
  if (await page.locator(`#${id} [role=${role}]`).count() < 2) return true;
  const before = [await chosen(), await detail()];
  if (how === "click") await page.locator(`#${id} [role=${role}][aria-selected=false]`).last().click();
  else {
    await list.focus();
    await page.keyboard.press("Home");
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press(await chosen() === before[0] ? "ArrowDown" : "Home");
  }
  check(await chosen() !== before[0] && await detail() !== before[1], `${id}: nothing new is chosen by ${how}`);
  return true;
}
for (const [id, role] of [["lineage-viewer", "treeitem"], ["rollouts-viewer", "option"]]) for (const how of ["click", "keys"]) await walk(wide, id, role, how);
if (await wide.locator("#lineage-viewer [role=tree]").count()) {
  const rows = () => wide.locator("#lineage-viewer [role=treeitem]").count();
  await wide.locator("#lineage-viewer [role=tree]").focus();
  await wide.keyboard.press("Home");
  const first = await rows();
  await wide.keyboard.press("Enter");
  check(await rows() !== first, "Enter neither opens nor closes a tree");
  await wide.keyboard.press("Enter");
  const state = wide.locator("#lineage-viewer select").nth(1);
  await state.selectOption("out");
  check((await wide.locator("#lineage-viewer .count").innerText()).includes(" of "), "the filter of the tree says nothing");
  await state.selectOption("");
}
const plot = wide.locator("figure.plot .canvas").first();
if (await plot.count()) {
  await plot.focus();
  await wide.keyboard.press("ArrowLeft");
  check((await wide.locator("figure.plot .values").first().innerText()).length > 0, "the arrow keys read no value of a plot");
}
const key = wide.locator("figure.plot .key").first();
if (await key.count()) {
  await key.focus();
  await wide.keyboard.press("Enter");
  check(await key.getAttribute("aria-pressed") === "false", "Enter does not hide a line");
  await wide.keyboard.press("Enter");
}
await wide.close();

for (const width of [1280, 390]) for (const scheme of ["light", "dark"]) {
  const page = await open(width, scheme);
  const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  check(over <= 0, `${width} px, ${scheme}: the page is ${over} px too wide`);
  await page.evaluate(() => scrollTo({ top: 0, behavior: "instant" }));
  await page.screenshot({ path: `${out}/${width}_${scheme}.png`, fullPage: true, timeout: 120000 });
  await page.close();
}
await browser.close();
for (const fault of faults) console.log(fault);
console.log(`${file}: ${headings.length} sections, ${statSync(file).size} bytes, ${faults.length} faults`);
process.exit(faults.length ? 1 : 0);
