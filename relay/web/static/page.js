// Live refresh, keys and copying. The page works without this script.
"use strict";

(() => {
  const main = document.getElementById("main");
  const asOf = document.getElementById("as-of");
  const button = document.getElementById("live");
  const said = document.getElementById("said");
  const keys = document.getElementById("keys");
  const isField = (element) => element instanceof Element && element.matches("input, select, textarea");

  // --- live refresh

  const EVERY_MS = 3000;
  const WHOLE_MS = 30000; // after so long the page is asked for as a whole, for the times on it that are relative
  let timer = 0;
  let isAsking = false;
  let waiting = null; // the latest inside of <main>, while somebody works in the one that is shown
  let version = main.dataset.live;
  let wholeAt = Date.now();
  let isPaused = false;

  function show(state, text) {
    button.hidden = false;
    button.dataset.state = state;
    button.textContent = text;
    button.setAttribute("aria-pressed", String(state === "on"));
  }

  function isChanged(field) {
    if (field.type === "checkbox" || field.type === "radio") return field.checked !== field.defaultChecked;
    if (field instanceof HTMLSelectElement) return [...field.options].some((one) => one.selected !== one.defaultSelected) && field.selectedIndex > 0;
    return field.value !== field.defaultValue;
  }

  function isInUse() {
    const focused = document.activeElement;
    if (main.contains(focused) && isField(focused)) return true;
    if ([...main.querySelectorAll("input, select, textarea")].some(isChanged)) return true;
    const selection = document.getSelection();
    return selection !== null && !selection.isCollapsed && main.contains(selection.anchorNode);
  }

  const sameAs = (one) => (other) =>
    other.tagName === one.tagName && other.id === one.id && other.getAttribute("href") === one.getAttribute("href") &&
    other.getAttribute("name") === one.getAttribute("name") && other.textContent === one.textContent;
  const likes = (one) => [...main.querySelectorAll(one.tagName)].filter(sameAs(one));
  const rowKey = (row) => row.querySelector("a[href]")?.getAttribute("href") ?? row.textContent;
  const boxes = () => [...main.querySelectorAll(".scroll, pre")];
  const folds = () => [...main.querySelectorAll("details")];

  function replace(html) {
    const focused = main.contains(document.activeElement) && document.activeElement !== main ? document.activeElement : null;
    const place = focused ? likes(focused).indexOf(focused) : -1;
    const here = main.querySelector("tr.here");
    const scrolled = boxes().map((box) => [box.scrollTop, box.scrollLeft]);
    const open = folds().map((fold) => fold.open);
    main.innerHTML = html;
    if (here) rows().find((row) => rowKey(row) === rowKey(here))?.classList.add("here");
    if (open.length === folds().length) folds().forEach((fold, n) => { fold.open = open[n]; });
    if (scrolled.length === boxes().length) boxes().forEach((box, n) => { [box.scrollTop, box.scrollLeft] = scrolled[n]; });
    if (focused) (likes(focused)[place] ?? main).focus({ preventScroll: true });
    reveal();
  }

  function refresh() {
    if (waiting === null || isPaused || isInUse()) return;
    const html = waiting;
    waiting = null;
    replace(html);
  }

  async function ask() {
    const headers = { Accept: "text/html", "X-Refresh": "1" };
    if (version && Date.now() - wholeAt < WHOLE_MS) headers["If-None-Match"] = `"${version}"`;
    const answer = await fetch(location.href, { headers, cache: "no-store", redirect: "manual" });
    if (isPaused) return;
    if (answer.type === "opaqueredirect" || answer.status === 401 || answer.status === 403) {
      pause();
      show("lost", "You have been signed out.");
      return;
    }
    if (answer.status === 200 || answer.status >= 400) {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("main");
      if (page === null) throw new Error("another program answers");
      version = page.dataset.live ?? "";
      waiting = page.innerHTML;
      wholeAt = Date.now();
    }
    refresh();
    if (waiting === null && answer.status !== 204) asOf.textContent = new Date(answer.headers.get("date") ?? Date.now()).toISOString().slice(0, 19).replace("T", " ");
    show("on", "Live");
  }

  async function poll() {
    if (isAsking || isPaused || document.hidden) return;
    isAsking = true;
    clearTimeout(timer);
    try {
      await ask();
    } catch {
      if (!isPaused) show("lost", "Reconnecting");
    }
    isAsking = false;
    if (!isPaused) timer = setTimeout(poll, EVERY_MS);
  }

  function pause() {
    isPaused = true;
    clearTimeout(timer);
  }

  if (main.dataset.live !== undefined && button) {
    show("on", "Live");
    timer = setTimeout(poll, EVERY_MS);
    button.addEventListener("click", () => {
      if (isPaused) {
        isPaused = false;
        show("on", "Live");
        poll();
      } else {
        pause();
        show("paused", "Paused");
      }
    });
    document.addEventListener("visibilitychange", poll); // tabs that nobody sees ask for nothing
  }

  // --- copying

  function reveal() {
    for (const one of main.querySelectorAll("button[data-copy], [data-all], [data-all-label]")) one.hidden = false;
  }

  async function copyText(text) {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const area = document.createElement("textarea"); // a page without TLS has no clipboard
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) throw new Error("the browser does not copy");
  }

  document.addEventListener("click", async (event) => {
    const copy = event.target instanceof Element ? event.target.closest("button[data-copy]") : null;
    if (copy === null) return;
    const label = copy.dataset.label ?? (copy.dataset.label = copy.textContent);
    try {
      await copyText(copy.dataset.copy);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Not copied";
    }
    said.textContent = copy.textContent;
    setTimeout(() => { copy.textContent = label; said.textContent = ""; }, 1500);
  });

  // --- choosing rows

  const choices = () => [...main.querySelectorAll("td.check input")];

  function countChosen() {
    const all = choices();
    const number = all.filter((one) => one.checked).length;
    for (const one of main.querySelectorAll("[data-all]")) {
      one.checked = number > 0 && number === all.length;
      one.indeterminate = number > 0 && number < all.length;
    }
    const count = main.querySelector("#chosen");
    if (count) count.textContent = number ? `${number} of ${all.length} chosen` : "Chosen rows";
  }

  document.addEventListener("change", ({ target }) => {
    if (target.matches("[data-all]")) for (const one of choices()) one.checked = target.checked;
    if (target.matches("[data-all], td.check input")) countChosen();
  });

  // --- forms

  document.addEventListener("submit", ({ target }) => { // an act is sent once
    if (target.matches('form[method="post"][action^="/acts/"]')) setTimeout(() => { for (const send of target.querySelectorAll("button")) send.disabled = true; });
  });

  // --- keys

  const rows = () => [...main.querySelectorAll("tbody tr")];
  let isGoing = false;

  function move(by) {
    const all = rows();
    if (all.length === 0) return;
    const here = all.findIndex((row) => row.classList.contains("here"));
    const next = here < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(Math.max(here + by, 0), all.length - 1);
    all[here]?.classList.remove("here");
    all[next].classList.add("here");
    all[next].scrollIntoView({ block: "nearest" });
    const target = all[next].querySelector("a[href], button");
    if (target !== null) target.focus({ preventScroll: true });
  }

  const chosen = () => main.querySelector("tr.here");
  const actions = {
    "/": () => (main.querySelector("form.filters input, form.filters select") ?? document.querySelector(".find input") ?? main).focus(),
    "?": () => keys.showModal(),
    j: () => move(1),
    k: () => move(-1),
    o: () => chosen()?.querySelector("a[href]")?.click(),
    x: () => chosen()?.querySelector("td.check input")?.click(),
    p: () => { if (main.dataset.live !== undefined) button?.click(); },
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.key === "Escape" && isField(document.activeElement)) {
      document.activeElement.blur();
      return;
    }
    const focused = document.activeElement;
    if ((isField(focused) && focused.type !== "checkbox") || document.querySelector("dialog[open]")) return;
    if (isGoing) {
      isGoing = false;
      const link = [...document.querySelectorAll("nav a[data-key]")].find((one) => one.dataset.key === event.key);
      if (link) {
        event.preventDefault();
        link.click();
      }
      return;
    }
    if (event.key === "g") {
      isGoing = true;
      setTimeout(() => { isGoing = false; }, 1500);
      return;
    }
    const action = Object.hasOwn(actions, event.key) ? actions[event.key] : null;
    if (action === null) return;
    event.preventDefault();
    action();
  });

  // On a phone the menu scrolls: the entry of this screen is in sight.
  const entry = document.querySelector("nav a[aria-current]");
  if (entry) entry.parentElement.scrollLeft = entry.offsetLeft + entry.offsetWidth / 2 - entry.parentElement.clientWidth / 2;

  // The browser keeps pages for its back button, also after a sign-out. Who may still look gets the page of now.
  window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

  reveal();
})();
